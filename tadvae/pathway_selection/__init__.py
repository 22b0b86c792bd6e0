"""From an ontology and annotations to a selected set of pathways."""
