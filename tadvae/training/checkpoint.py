"""Training state on disk: safetensors and JSON, never a pickle.

The only random numbers of a step are drawn from a generator seeded by ``(seed, rank, step)``, so the
position is all there is to save of them.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from tadvae.base.documents import parse_json
from tadvae.base.errors import UserError
from tadvae.model.weights import WEIGHTS, load_weights, state_tensors

AVERAGE = "average.safetensors"
OPTIMIZER, POSITION = "optimizer.safetensors", "position.json"


Earlier = tuple[tuple[int, int], ...]
"""Stretches of an epoch with other numbers of workers; see :class:`Position`."""


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes
    ----------
    epoch, step
        The next step to make, counted within its epoch.
    global_step
        Steps made in all.
    cells_seen
        Perturbed and control cells of all those steps and ranks, controls matched to a bag not counted.
    world_size, bags_per_batch
        What the step's meaning depends on.
    earlier
        Where workers came or went within this epoch: (world size, bags that each rank saw) of every stretch
        before this one; ``step`` counts from the start of the last.
    vocabulary
        Fingerprint of the gene vocabulary.
    """

    epoch: int = 0
    step: int = 0
    global_step: int = 0
    cells_seen: int = 0
    world_size: int = 1
    bags_per_batch: int = 1
    vocabulary: str = ""
    earlier: Earlier = ()


def save_checkpoint(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    position: Position,
    average: AveragedModel | None = None,
) -> None:
    """Write weights, their average, optimizer state and position into an existing empty folder."""
    save_file(state_tensors(module), folder / WEIGHTS)
    if average is not None:
        save_file(state_tensors(average.module), folder / AVERAGE)
    state = {
        f"{i}.{name}": value.contiguous() if isinstance(value, Tensor) else torch.tensor(value)
        for i, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    save_file(state, folder / OPTIMIZER)
    (folder / POSITION).write_text(json.dumps(asdict(position), indent=1))


def load_checkpoint(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    vocabulary: str,
    average: AveragedModel | None = None,
) -> Position:
    """Restore what :func:`save_checkpoint` wrote; a damaged one, or of another vocabulary, is a UserError."""
    position = _read_position(folder / POSITION)
    if position.vocabulary != vocabulary:
        raise UserError(
            f"{folder}: a checkpoint of another gene vocabulary ({position.vocabulary}, this store has "
            f"{vocabulary}); resume with the store that the run began with."
        )
    load_weights(folder / WEIGHTS, module)
    if average is not None:
        load_weights(folder / AVERAGE, average.module)
        average.n_averaged.fill_(position.global_step)
    state = _read_optimizer(folder / OPTIMIZER, optimizer)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return position


def _read_position(path: Path) -> Position:
    try:
        text = parse_json(path.read_text(encoding="utf-8"))
        text["earlier"] = tuple((int(world_size), int(each)) for world_size, each in text["earlier"])
        for field in fields(Position):
            if type(text[field.name]) is not type(field.default):
                raise ValueError(f"{field.name} is {text[field.name]!r}")
        return Position(**text)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from None


def _read_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """State by parameter number; scalars such as Adam's step count apart, it has the parameter's shape."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    try:
        for key, value in load(path.read_bytes()).items():
            i, _, name = key.partition(".")
            if value.dim() and value.shape != parameters[int(i)].shape:
                raise ValueError(f"{key} has another shape than its parameter")
            state.setdefault(int(i), {})[name] = value
        if len({frozenset(entry) for entry in state.values()}) > 1:
            raise ValueError("parameters differ in what is kept of them")
    except (OSError, SafetensorError, ValueError, IndexError) as error:
        raise _damaged(path, error) from None
    return state


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path}: damaged, or no part of a checkpoint of this run ({type(error).__name__}: "
        f"{str(error)[:120]}); restore the file, or train again into another folder."
    )
