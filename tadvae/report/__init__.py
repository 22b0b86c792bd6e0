"""The page of a run: what it was trained on, what it learned, how well it predicts."""
