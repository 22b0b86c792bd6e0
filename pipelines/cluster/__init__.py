"""Connection to Ray, tasks on it, and what a cluster must have."""
