"""A trained model and what one asks of it: activities, predictions, uncertainty, graphs."""
