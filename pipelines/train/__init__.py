"""Training on Ray Train, fed by Ray Data."""
