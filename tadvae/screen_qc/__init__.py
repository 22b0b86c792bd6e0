"""Quality control of screens: targets, escaped cells, guides, contexts and batches."""
