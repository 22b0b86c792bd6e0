"""A store as a model reads it: splits, plans, readers, vocabularies and batches."""
