"""Selection of pathways from an ontology and its annotations."""
