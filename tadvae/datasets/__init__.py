"""Public screens: where to download them, their authors and licences, and how to convert them."""
