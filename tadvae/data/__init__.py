"""Reading a store for training: splits, plans, readers, vocabularies and batches."""
