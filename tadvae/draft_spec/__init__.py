"""A first spec for ``tadvae convert``, written by looking into the files."""
