"""Training: preparation, one epoch loop, checkpoints, validation, calibration."""
