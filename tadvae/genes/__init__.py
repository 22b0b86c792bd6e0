"""Gene identifiers brought to one vocabulary."""
