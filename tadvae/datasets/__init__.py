"""Public screens: where they are, whose they are, and how they are converted."""
