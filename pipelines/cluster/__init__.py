"""Connection to Ray, running tasks on it, and checks of a cluster."""
