"""The order of an epoch: which rank sees which bag at which step.

The plan is a pure function of ``(seed, epoch, rank, world_size)`` and the store's bag table. No cells are
read here. The plan can start in the middle of an epoch, so that training can resume there.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pydantic import Field

from tadvae.base.config import Config


class StreamConfig(Config):
    """How bags of cells are ordered and put into batches."""

    bags_per_batch: int = Field(8, ge=1)
    """Bags (groups of up to ``layout.bag_size`` cells) per step on each worker."""
    cells_per_bag: int | None = Field(None, ge=2)
    """Largest number of cells of a bag in training: larger bags of the store are divided into parts of equal
    size, drawn anew in every epoch. Use it for the batch size of a publication. None: bags of the store."""
    shuffle_window: int = Field(8, ge=1)
    """Row groups whose bags are shuffled together; more of them mix better and need more memory."""
    max_controls: int = Field(2048, ge=1)
    """Largest number of control cells of each (dataset, context) that perturbed bags are matched with."""
    control_bags: bool = True
    """Whether bags of control cells are also encoded and reconstructed."""
    threads: int = Field(2, ge=1)
    """Threads per worker that read and decode cells."""


@dataclass(frozen=True)
class StepCost:
    """How long a step takes, in units of a token of an observed perturbed cell.

    Attributes
    ----------
    control
        Store index of the control. Only control cells are encoded: bags of controls, and for the perturbed
        bags of a context in a batch as many matched controls as the largest has cells, unless a bag of
        controls in the batch is as large.
    encoded
        Time of a token of an encoded cell.
    """

    control: int
    encoded: float = 1.0

    def of(self, bags: pd.DataFrame, per_batch: int) -> np.ndarray:
        """Cost of each batch of ``per_batch`` bags, float64, shape (n / per_batch,); ``bags`` has n rows."""
        n_batches = len(bags) // per_batch
        batch = np.repeat(np.arange(n_batches), per_batch)
        places, code = np.unique(bags[["dataset", "context"]].to_numpy(), axis=0, return_inverse=True)
        place = batch * len(places) + code.ravel()
        n_places = n_batches * len(places)
        tokens, cells = bags["n_tokens"].to_numpy(np.float64), bags["n_cells"].to_numpy()
        control = bags["perturbation"].to_numpy() == self.control
        largest, largest_control = np.zeros(n_places, cells.dtype), np.zeros(n_places, cells.dtype)
        np.maximum.at(largest, place[~control], cells[~control])
        np.maximum.at(largest_control, place[control], cells[control])
        drawn = np.zeros(n_places)
        np.maximum.at(drawn, place[~control], tokens[~control])
        drawn[largest_control >= largest] = 0  # a bag of controls serves as matched controls
        encoded = drawn + np.bincount(place[control], tokens[control], n_places)
        encoded = encoded.reshape(n_batches, len(places)).sum(axis=1)
        observed = np.bincount(batch[~control], tokens[~control], n_batches)
        result: np.ndarray = observed + self.encoded * encoded
        return result


@dataclass(frozen=True)
class Window:
    """Row groups that are read together and whose bags are shuffled together.

    Attributes
    ----------
    reads
        (shard, row group, bag ids) to read, in this order.
    order
        The same bags in the order in which the model sees them.
    """

    reads: list[tuple[int, int, np.ndarray]]
    order: np.ndarray


def divided_bags(bags: pd.DataFrame, cells_per_bag: int | None, n_stored: int) -> pd.DataFrame:
    """Divide bags into parts of at most ``cells_per_bag`` cells, one row per part.

    Part k of bag b has the id ``b + k · n_stored``, so the plan treats parts as bags, and a reader finds the
    stored bag by the remainder.

    Parameters
    ----------
    bags
        Rows of ``Store.bags`` with their ids as index.
    cells_per_bag
        None: bags stay as they are.
    n_stored
        Number of all bags of the store.
    """
    if cells_per_bag is None:
        return bags
    parts = n_parts(bags["n_cells"].to_numpy(), cells_per_bag)  # (N,)
    result = bags.loc[bags.index.repeat(parts)]
    part = np.concatenate([np.arange(n) for n in parts] or [np.empty(0, np.int64)])
    each = np.repeat(parts, parts)
    return result.assign(n_tokens=result["n_tokens"] // each).set_axis(result.index + part * n_stored)


def n_parts(n_cells: np.ndarray, cells_per_bag: int) -> np.ndarray:
    """Number of parts of at most ``cells_per_bag`` cells of each bag, shape (N,)."""
    result: np.ndarray = np.maximum(-(-n_cells // cells_per_bag), 1)
    return result


def rank_bags(
    bags: pd.DataFrame, seed: int, epoch: int, rank: int, world_size: int
) -> tuple[list[tuple[int, int, np.ndarray]], int]:
    """Row groups and bags that one rank reads in one epoch.

    Row groups are shuffled and concatenated, with the bags of each in a new order, so that ranks which share
    a row group swap its bags between epochs. The sequence of bags is cut into equal spans, one per rank.
    Every rank then has the same number of bags, no bag is divided, and at most ``world_size - 1`` row groups
    are read twice. If the number of bags is not a multiple of ``world_size``, the last ranks repeat bags from
    the start of the sequence.

    Returns
    -------
    [(shard, row group, bag ids), …] in reading order, and how many bags the epoch repeats over all ranks.
    """
    groups = [
        (int(shard), int(group), frame.index.to_numpy())
        for (shard, group), frame in bags.groupby(["shard", "row_group"], sort=True)
    ]
    rng = np.random.default_rng([seed, epoch, 0])
    order = rng.permutation(len(groups))
    groups = [(shard, group, rng.permutation(ids)) for shard, group, ids in (groups[i] for i in order)]
    n_bags = len(bags)
    per_rank = math.ceil(n_bags / world_size)
    starts = np.concatenate([[0], np.cumsum([len(ids) for _, _, ids in groups])])
    reads = []
    for first, last in _spans(rank * per_rank, (rank + 1) * per_rank, n_bags):
        for (shard, group, ids), start in zip(groups, starts[:-1], strict=True):
            part = ids[max(first - start, 0) : max(last - start, 0)]
            if len(part):
                reads.append((shard, group, np.sort(part)))
    return reads, per_rank * world_size - n_bags


def epoch_windows(
    bags: pd.DataFrame,
    config: StreamConfig,
    *,
    seed: int,
    epoch: int,
    rank: int,
    world_size: int,
    cost: StepCost,
    skip: int = 0,
) -> list[Window]:
    """Windows of one rank and epoch, without the first ``skip`` bags.

    Batches are filled with bags of one (dataset, context) as far as the bags of a window allow, so that few
    sets of control cells are encoded per step. Ranks wait for each other at every step, so batches that take
    long are placed at the same steps on all.

    Parameters
    ----------
    bags
        The training bags: rows of ``Store.bags`` with their ids as index.
    cost
        How long a batch takes.
    skip
        Bags of this epoch that this rank has already seen.
    """
    reads, _ = rank_bags(bags, seed, epoch, rank, world_size)
    n_steps = steps_per_epoch(len(bags), config, world_size)
    step_key = np.random.default_rng([seed, epoch, 3]).random(n_steps)  # the same on all ranks
    place = bags[["dataset", "context"]].to_numpy()
    windows, done = [], 0
    for number, start in enumerate(range(0, len(reads), config.shuffle_window)):
        part = reads[start : start + config.shuffle_window]
        order = np.concatenate([ids for _, _, ids in part])
        rng = np.random.default_rng([seed, epoch, 1, rank, number])
        order = rng.permutation(order)
        order = order[_by_context(place[bags.index.get_indexer(order)], done, config.bags_per_batch, rng)]
        if world_size > 1:
            order = _in_step(order, bags, cost, done, config.bags_per_batch, step_key)
        done += len(order)
        if skip >= len(order):
            skip -= len(order)
            continue
        if skip:
            left = np.sort(order[skip:])
            part = [(s, g, kept) for s, g, ids in part if len(kept := ids[np.isin(ids, left)])]
            order, skip = order[skip:], 0
        windows.append(Window(part, order))
    return windows


def bags_left(
    bags: pd.DataFrame,
    config: StreamConfig,
    *,
    seed: int,
    epoch: int,
    cost: StepCost,
    earlier: Sequence[Sequence[int]],
) -> pd.DataFrame:
    """Bags of an epoch that no worker has seen yet, after the number of workers changed during the epoch.

    Parameters
    ----------
    earlier
        (world size, bags that each rank saw) of every earlier part of the epoch. Each part was planned over
        the bags that the parts before it left, so these numbers are enough to repeat the plan.
    """
    for world_size, each in earlier:
        seen = []
        for rank in range(world_size):
            windows = epoch_windows(
                bags, config, seed=seed, epoch=epoch, rank=rank, world_size=world_size, cost=cost
            )
            seen.append(np.concatenate([window.order for window in windows])[:each])
        bags = bags.drop(index=np.unique(np.concatenate(seen)))
    return bags


def steps_per_epoch(n_bags: int, config: StreamConfig, world_size: int) -> int:
    """Number of steps of every rank in one epoch."""
    return math.ceil(math.ceil(n_bags / world_size) / config.bags_per_batch)


def _by_context(place: np.ndarray, done: int, per_batch: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of a window's bags in an order whose batches hold one (dataset, context) each where possible.

    Parameters
    ----------
    place : (n, 2)
        Dataset and context of each bag, the bags in a random order.
    done
        Number of bags before the window; the first bags of the window may complete a batch of those.
    """
    of = np.unique(place, axis=0, return_inverse=True)[1].ravel()
    full, rest = [], []
    for group in range(of.max(initial=-1) + 1):
        inside = np.flatnonzero(of == group)
        whole = len(inside) // per_batch * per_batch
        full += np.split(inside[:whole], whole // per_batch) if whole else []
        rest.append(inside[whole:])
    left = np.concatenate([np.empty(0, np.int64), *(rest[i] for i in rng.permutation(len(rest)))])
    batches = [full[i] for i in rng.permutation(len(full))]
    first = -done % per_batch  # they complete a batch of the window before
    while len(left) < first and batches:
        left = np.concatenate([left, batches.pop()])
    return np.concatenate([left[:first], *batches, left[first:]])


def _in_step(
    order: np.ndarray, bags: pd.DataFrame, cost: StepCost, done: int, per_batch: int, step_key: np.ndarray
) -> np.ndarray:
    """Reorder the batches of a window: batches that take longer go to steps with a larger ``step_key``.

    Parameters
    ----------
    order : (n,)
        Bags of the window.
    bags
        The training bags.
    done
        Number of bags before the window; the first bags of the window may complete a batch of those.
    step_key : (n_steps,)
        Random number of each step of the epoch, the same on all ranks.
    """
    first = -done % per_batch
    n_batches = max(len(order) - first, 0) // per_batch
    span = slice(first, first + n_batches * per_batch)
    batches = order[span].reshape(n_batches, per_batch)
    by_cost = np.argsort(cost.of(bags.loc[order[span]], per_batch), kind="stable")
    step = (done + first) // per_batch
    by_key = np.argsort(step_key[step : step + n_batches], kind="stable")
    result, moved = order.copy(), np.empty_like(batches)
    moved[by_key] = batches[by_cost]
    result[span] = moved.ravel()
    return result


def _spans(first: int, last: int, n: int) -> Iterator[tuple[int, int]]:
    """Split ``first:last`` into spans of a sequence of length ``n`` that is repeated."""
    while first < last and n:
        start = first % n
        stop = min(start + last - first, n)
        yield start, stop
        first += stop - start
