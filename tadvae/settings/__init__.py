"""All settings of a run, and the presets of published models."""
