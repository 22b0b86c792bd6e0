"""Masking strategies, one class in one file each; a file put here is a strategy that configs can name."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
