"""Weights of a network as safetensors."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location

WEIGHTS = "model.safetensors"


def state_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The module's parameters and persistent buffers, contiguous."""
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}


def load_weights(path: Path | Location, module: nn.Module) -> None:
    """Load weights; ones that do not fit the module are a UserError."""
    try:
        weights: Mapping[str, Tensor] = load(Location.of(path).read_bytes())
    except (FileNotFoundError, SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: cannot be read as safetensors weights ({str(error)[:120]}); "
            "copy the model again from its run."
        ) from None
    expected = module.state_dict()
    wrong = sorted(set(weights) ^ set(expected)) or [
        name for name, value in weights.items() if value.shape != expected[name].shape
    ]
    if wrong:
        raise UserError(
            f"{path}: these weights belong to another model (first difference: {wrong[0]}); "
            "use the config and vocabulary they were saved with."
        )
    module.load_state_dict(weights)
