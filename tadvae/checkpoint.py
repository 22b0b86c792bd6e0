"""Training state on disk: safetensors and JSON, never a pickle.

The only random numbers of a step are drawn from a generator seeded by ``(seed, rank, step)``, so the
position is all there is to save of them.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save_file
from torch import Tensor, nn

from tadvae.errors import UserError
from tadvae.filesystem import Location

WEIGHTS, OPTIMIZER, POSITION = "model.safetensors", "optimizer.safetensors", "position.json"


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes
    ----------
    epoch, step
        The next step to make, counted within its epoch.
    global_step
        Steps made in all.
    world_size, bags_per_batch
        What the step's meaning depends on; if either differs, the epoch starts again.
    vocabulary
        Fingerprint of the gene vocabulary.
    """

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    world_size: int = 1
    bags_per_batch: int = 1
    vocabulary: str = ""


def save_checkpoint(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, position: Position
) -> None:
    """Write weights, optimizer state and position into an existing empty folder."""
    save_file(state_tensors(module), folder / WEIGHTS)
    state = {
        f"{i}.{name}": value.contiguous() if isinstance(value, Tensor) else torch.tensor(value)
        for i, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    save_file(state, folder / OPTIMIZER)
    (folder / POSITION).write_text(json.dumps(asdict(position), indent=1))


def load_checkpoint(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, vocabulary: str
) -> Position:
    """Restore what :func:`save_checkpoint` wrote; a checkpoint of another vocabulary is a UserError."""
    position = Position(**json.loads((folder / POSITION).read_text()))
    if position.vocabulary != vocabulary:
        raise UserError(
            f"{folder}: a checkpoint of another gene vocabulary ({position.vocabulary}, this store has "
            f"{vocabulary}); resume with the store that the run began with."
        )
    load_weights(folder / WEIGHTS, module)
    entries: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(folder / OPTIMIZER).items():
        i, _, name = key.partition(".")
        entries.setdefault(int(i), {})[name] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    return position


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
