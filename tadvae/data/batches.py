"""Batches of bags of cells with matched control cells, built from the cells that an epoch's plan reads."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tadvae.cells.ragged import Cells, runs
from tadvae.data.plan import Window


@dataclass(frozen=True)
class Bag:
    """Cells of one (dataset, context, perturbation), with an equal number of matched controls.

    A bag of control cells has no matched controls: it is only encoded and reconstructed.

    Attributes
    ----------
    bag
        Row of the bag in the store's bag table.
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
    """

    def __init__(
        self,
        bags: pd.DataFrame,
        controls: Mapping[tuple[int, int], Cells],
        control_perturbation: int,
        bags_per_batch: int,
        seed: int,
    ) -> None:
        self._dataset = bags["dataset"].to_numpy()
        self._context = bags["context"].to_numpy()
        self._perturbation = bags["perturbation"].to_numpy()
        self._controls = controls
        self._control = control_perturbation
        self._per_batch = bags_per_batch
        self._seed = seed
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
                if bag in found:
                    pending.append(self._bag(bag, found[bag], epoch))
                else:
                    self.skipped += 1
                if len(pending) == self._per_batch:
                    yield self._batch(pending)
                    pending = []
        if pending:
            yield self._batch(pending)

    def _bag(self, bag: int, cells: Cells, epoch: int) -> Bag:
        dataset, context = int(self._dataset[bag]), int(self._context[bag])
        perturbation = int(self._perturbation[bag])
        controls = None
        if perturbation != self._control:
            pool = self._controls[dataset, context]
            rng = np.random.default_rng([self._seed, epoch, 2, bag])
            controls = pool.take(rng.choice(len(pool), len(cells), replace=len(cells) > len(pool)))
        return Bag(bag, dataset, context, perturbation, cells, controls)

    @staticmethod
    def _batch(bags: list[Bag]) -> Batch:
        return Batch(sorted(bags, key=lambda bag: (bag.dataset, bag.context, bag.bag)))
