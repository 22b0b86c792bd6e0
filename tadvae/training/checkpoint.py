"""Training state on disk: safetensors and JSON, never a pickle.

The only random numbers of a step are drawn from a generator seeded by ``(seed, rank, step)``, so the
position is all there is to save of them.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from tadvae.base.checksums import CheckedFolder
from tadvae.base.documents import parse_json
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.model.weights import WEIGHTS, load_weights, state_tensors
from tadvae.training.averaging import MovingAverage

AVERAGE = "average.safetensors"
OPTIMIZER, POSITION = "optimizer.safetensors", "position.json"
_COUNTS = ("epoch", "step", "global_step", "cells_seen")


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
    average: MovingAverage[Any] | None = None,
) -> None:
    """Write weights, their average, optimizer state and position into an existing empty folder."""
    files = {WEIGHTS: save(state_tensors(module))}
    if average is not None:
        files[AVERAGE] = save(state_tensors(average.module))
    state = {
        f"{i}.{name}": value.contiguous() if isinstance(value, Tensor) else torch.tensor(value)
        for i, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    files[OPTIMIZER] = save(state)
    files[POSITION] = json.dumps(asdict(position), indent=1).encode()
    _files(folder).write(files)


def load_checkpoint(
    folder: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    vocabulary: str,
    average: MovingAverage[Any] | None = None,
) -> Position:
    """Restore what :func:`save_checkpoint` wrote; a damaged one, or of another vocabulary, is a UserError."""
    position = _read_position(folder)
    if position.vocabulary != vocabulary:
        raise UserError(
            f"{folder}: a checkpoint of another gene vocabulary ({position.vocabulary}, this store has "
            f"{vocabulary}); resume with the store that the run began with."
        )
    _load(folder, WEIGHTS, module)
    if average is not None:
        _load(folder, AVERAGE, average.module)
        average.n_steps = position.global_step
    state = _read_optimizer(folder, optimizer)
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return position


def _files(folder: Path) -> CheckedFolder:
    return CheckedFolder(Location.of(folder), "checkpoint", "restore it, or train again into another folder")


def _load(folder: Path, name: str, module: nn.Module) -> None:
    try:
        data = _files(folder).read(name)
    except OSError as error:
        raise _damaged(folder / name, error) from None
    load_weights(folder / name, module, data)


def _read_position(folder: Path) -> Position:
    path = folder / POSITION
    try:
        data = Location.of(path).read_bytes()
        text = parse_json(data)
        text["earlier"] = tuple((int(world_size), int(each)) for world_size, each in text["earlier"])
        for field in fields(Position):
            if type(text[field.name]) is not type(field.default):
                raise ValueError(f"{field.name} is {text[field.name]!r}")
        position = Position(**text)
        numbers = [
            *(getattr(position, name) for name in _COUNTS),
            *(n for pair in position.earlier for n in pair),
        ]
        if min(numbers) < 0 or min(position.world_size, position.bags_per_batch) < 1:
            raise ValueError("a negative number")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from None
    _files(folder).compare(POSITION, data)
    return position


def _read_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Tensor]]:
    """State by parameter number; scalars such as Adam's step count apart, it has the parameter's shape."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    path = folder / OPTIMIZER
    try:
        for key, value in load(_files(folder).read(OPTIMIZER)).items():
            i, _, name = key.partition(".")
            if value.dim() and value.shape != parameters[int(i)].shape:
                raise ValueError(f"{key} has another shape than its parameter")
            if not torch.isfinite(value).all():
                raise ValueError(f"{key} is not finite")
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
