"""Batches of bags of cells with matched control cells, built from the cells that an epoch's plan reads."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from tadvae.cells.ragged import Cells, runs
from tadvae.data.plan import Window, n_parts


@dataclass(frozen=True)
class Bag:
    """Cells of one (dataset, context, perturbation), with matched control cells.

    Bags of a batch in the same context share their controls (the same object), so that these are encoded
    once. A bag of control cells has no matched controls: it is only encoded and reconstructed.

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
    def encoded(self) -> list[Cells]:
        """The sets of cells that are encoded, each once, by dataset: matched controls, bags of controls."""
        bags = sorted(self.bags, key=lambda bag: bag.dataset)
        sets = [bag.cells if bag.controls is None else bag.controls for bag in bags]
        return list({id(cells): cells for cells in sets}.values())

    @property
    def n_cells(self) -> int:
        """Number of cells in all bags, controls not counted."""
        return sum(len(bag.cells) for bag in self.bags)

    @property
    def n_tokens(self) -> int:
        """Number of tokens of all cells, and of the controls that are encoded."""
        observed = [bag.cells for bag in self.bags if bag.controls is not None]
        return sum(len(part.values) for part in [*observed, *self.encoded])


class BatchAssembler:
    """Puts bags into their planned order and matches control cells to them.

    The perturbed bags of a batch in one context get the same controls, as many as the largest of them has
    cells: encoding is the expensive part of a step. A bag of controls of that context in the batch serves as
    their controls if it is large enough; otherwise control cells are drawn.

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
        With the epoch and the ids of the bags of a batch, it determines their controls, on any rank.
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
        pending: list[tuple[int, Cells]] = []
        for window in windows:
            found: dict[int, Cells] = {}
            for _ in window.reads:
                bag_of_row, cells = next(reads)
                for a, b in runs(bag_of_row):
                    found[int(bag_of_row[a])] = cells[a:b]
            for bag in window.order.tolist():
                part = self._part(bag, found, epoch)
                if part is not None and len(part):
                    pending.append((bag, part))
                else:
                    self.skipped += 1
                if len(pending) == self._per_batch:
                    yield self._batch(pending, epoch)
                    pending = []
        if pending:
            yield self._batch(pending, epoch)

    def _part(self, bag: int, found: Mapping[int, Cells], epoch: int) -> Cells | None:
        """Cells of a bag of the plan; None if all cells of the stored bag are held out."""
        part, stored = divmod(bag, len(self._dataset))
        cells = found.get(stored)
        if cells is None or self._parts is None or self._parts[stored] == 1:
            return cells
        order = np.random.default_rng([self._seed, epoch, 4, stored]).permutation(len(cells))
        return cells.take(np.sort(np.array_split(order, self._parts[stored])[part]))

    def _batch(self, members: list[tuple[int, Cells]], epoch: int) -> Batch:
        places: dict[tuple[int, int], list[Bag]] = {}
        for number, cells in sorted(members, key=lambda member: member[0]):
            stored = number % len(self._dataset)
            place = int(self._dataset[stored]), int(self._context[stored])
            bag = Bag(number, *place, int(self._perturbation[stored]), cells, None)
            places.setdefault(place, []).append(bag)
        bags: list[Bag] = []
        for place, inside in sorted(places.items()):
            own = [bag for bag in inside if bag.perturbation == self._control]
            perturbed = [bag for bag in inside if bag.perturbation != self._control]
            if perturbed:
                largest = max(len(bag.cells) for bag in perturbed)
                controls = self._matched(place, own, largest, [self._seed, epoch, 2, inside[0].bag])
                perturbed = [replace(bag, controls=controls) for bag in perturbed]
            bags += sorted([*own, *perturbed], key=lambda bag: bag.bag)
        return Batch(bags)

    def _matched(self, place: tuple[int, int], own: list[Bag], n: int, seed: list[int]) -> Cells:
        """At least ``n`` controls of a (dataset, context): a bag of controls of the batch, or drawn cells."""
        largest = max((bag.cells for bag in own), key=len, default=None)
        if largest is not None and len(largest) >= n:
            return largest
        pool = self._controls[place]
        return pool.take(np.random.default_rng(seed).choice(len(pool), n, replace=n > len(pool)))
