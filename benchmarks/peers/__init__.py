"""Programs of others on our data: one file per program (``run_*.py``), scored here with our metrics."""
