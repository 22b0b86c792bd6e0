"""Batches of bags of cells with matched control cells, built from the cells that an epoch's plan reads."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tadvae.cells.ragged import Cells, runs
from tadvae.data.plan import Window, n_parts


@dataclass(frozen=True)
class Bag:
    """Cells of one (dataset, context, perturbation), with an equal number of matched controls.

    A bag of control cells has no matched controls: it is only encoded and reconstructed.

    Attributes
    ----------
    bag
        Id of the bag in the plan: its row in the store's bag table, or that of a part of it.
    dataset, context, perturbation
        Indices in the store.
    cells
        The cells of the bag.
    controls
        Matched control cells; None for a bag of control cells.
    """

    bag: int
    dataset: int
    context: int
    perturbation: int
    cells: Cells
    controls: Cells | None


@dataclass(frozen=True)
class Batch:
    """Bags of one training step on one rank, sorted by dataset and context."""

    bags: list[Bag]

    @property
    def n_cells(self) -> int:
        """Number of cells in all bags, controls not counted."""
        return sum(len(bag.cells) for bag in self.bags)

    @property
    def n_tokens(self) -> int:
        """Number of tokens of all cells and controls."""
        parts = [part for bag in self.bags for part in (bag.cells, bag.controls) if part is not None]
        return sum(len(part.values) for part in parts)


class BatchAssembler:
    """Puts bags into their planned order and matches control cells to each.

    Attributes
    ----------
    skipped
        Number of bags left out so far because all of their cells are held out.

    Parameters
    ----------
    bags
        Bag table of the store.
    controls
        Control cells of every (dataset, context).
    control_perturbation
        Store index of the control.
    bags_per_batch
        Number of bags in a batch.
    seed
        With the epoch and the id of a bag, it determines the bag's controls, on any rank.
    cells_per_bag
        Largest number of cells of a bag; bags of the plan are then parts of bags of the store. None: whole
        bags.
    """

    def __init__(
        self,
        bags: pd.DataFrame,
        controls: Mapping[tuple[int, int], Cells],
        control_perturbation: int,
        bags_per_batch: int,
        seed: int,
        cells_per_bag: int | None = None,
    ) -> None:
        self._dataset = bags["dataset"].to_numpy()
        self._context = bags["context"].to_numpy()
        self._perturbation = bags["perturbation"].to_numpy()
        self._controls = controls
        self._control = control_perturbation
        self._per_batch = bags_per_batch
        self._seed = seed
        self._parts = None if cells_per_bag is None else n_parts(bags["n_cells"].to_numpy(), cells_per_bag)
        self.skipped = 0

    def batches(
        self, windows: Iterable[Window], reads: Iterator[tuple[np.ndarray, Cells]], epoch: int
    ) -> Iterator[Batch]:
        """Batches of one epoch; the last may have fewer bags.

        Parameters
        ----------
        windows
            Windows of the epoch's plan.
        reads
            For every read of every window, in order: bag id of each row, and the cells. A bag whose cells
            are all held out does not occur here and is left out.
        """
        pending: list[Bag] = []
        for window in windows:
            found: dict[int, Cells] = {}
            for _ in window.reads:
                bag_of_row, cells = next(reads)
                for a, b in runs(bag_of_row):
                    found[int(bag_of_row[a])] = cells[a:b]
            for bag in window.order.tolist():
                part = self._part(bag, found, epoch)
                if part is not None and len(part):
                    pending.append(self._bag(bag, part, epoch))
                else:
                    self.skipped += 1
                if len(pending) == self._per_batch:
                    yield self._batch(pending)
                    pending = []
        if pending:
            yield self._batch(pending)

    def _part(self, bag: int, found: Mapping[int, Cells], epoch: int) -> Cells | None:
        """Cells of a bag of the plan; None if all cells of the stored bag are held out."""
        part, stored = divmod(bag, len(self._dataset))
        cells = found.get(stored)
        if cells is None or self._parts is None or self._parts[stored] == 1:
            return cells
        order = np.random.default_rng([self._seed, epoch, 4, stored]).permutation(len(cells))
        return cells.take(np.sort(np.array_split(order, self._parts[stored])[part]))

    def _bag(self, bag: int, cells: Cells, epoch: int) -> Bag:
        stored = bag % len(self._dataset)
        dataset, context = int(self._dataset[stored]), int(self._context[stored])
        perturbation = int(self._perturbation[stored])
        controls = None
        if perturbation != self._control:
            pool = self._controls[dataset, context]
            rng = np.random.default_rng([self._seed, epoch, 2, bag])
            controls = pool.take(rng.choice(len(pool), len(cells), replace=len(cells) > len(pool)))
        return Bag(bag, dataset, context, perturbation, cells, controls)

    @staticmethod
    def _batch(bags: list[Bag]) -> Batch:
        return Batch(sorted(bags, key=lambda bag: (bag.dataset, bag.context, bag.bag)))
