import pipelines  # noqa: F401  # before Ray is imported: it sets what a local Ray reads
