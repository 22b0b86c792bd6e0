"""Weights of a network as safetensors."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from tadvae.base.checksums import sha256, sums_of, write_sums
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.data.vocabulary import REPAIR, VOCABULARY_FILES
from tadvae.effects.file import EFFECTS

CONFIG, WEIGHTS = "config.yaml", "model.safetensors"
Module = TypeVar("Module", bound=nn.Module)


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The module's parameters and persistent buffers, contiguous."""
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def load_weights(path: Path | Location, module: nn.Module, data: bytes | None = None) -> None:
    """Load weights; ones that do not fit the module are a UserError.

    Parameters
    ----------
    data
        Content of the file; None: it is read.
    """
    weights = _read(path, data)
    _require_same_shapes(path, weights, module)
    module.load_state_dict(weights)


def build_with_weights(path: Path | Location, build: Callable[[], Module], data: bytes) -> Module:
    """Build a module and load its weights, whose shapes are compared before any memory is allocated.

    A damaged config can ask for a network that no memory holds; its weights are as large as their file.

    Parameters
    ----------
    path, data
        The file of the weights, for messages, and its content.
    """
    weights = _read(path, data)
    with torch.device("meta"):
        _require_same_shapes(path, weights, build())
    module = build()
    module.load_state_dict(weights)
    return module


def _read(path: Path | Location, data: bytes | None) -> Mapping[str, Tensor]:
    try:
        weights: Mapping[str, Tensor] = load(Location.of(path).read_bytes() if data is None else data)
    except (FileNotFoundError, SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: cannot be read as safetensors weights ({str(error)[:120]}); {REPAIR}."
        ) from None
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(
                f"{path}: {name} holds weights that are not finite numbers; copy it again from its run, "
                "or train it again with a lower learning rate."
            )
    return weights


def _require_same_shapes(path: Path | Location, weights: Mapping[str, Tensor], module: nn.Module) -> None:
    expected = module.state_dict()
    wrong = sorted(set(weights) ^ set(expected)) or [
        name for name, value in weights.items() if value.shape != expected[name].shape
    ]
    if wrong:
        raise UserError(
            f"{path}: these weights belong to another model (first difference: {wrong[0]}); "
            "use the config and vocabulary they were saved with."
        )


def finish_model(folder: Location, weights: bytes) -> None:
    """Write the weights of a model folder that has all other files, and before them the checksums of all.

    The model card has none: it is there to be edited.
    """
    begin_model(folder, {WEIGHTS: sha256(weights)})
    (folder / WEIGHTS).write_bytes(weights)


def begin_model(folder: Location, others: Mapping[str, str] | None = None) -> None:
    """Write the checksums of a model folder that has no weights yet, and those of other files."""
    write_sums(folder, {**sums_of(folder, [CONFIG, EFFECTS, *VOCABULARY_FILES]), **(others or {})})
