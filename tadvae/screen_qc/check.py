"""The quality control of a whole store, in bounded memory."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import sparse

from tadvae.cells.ragged import Cells, runs
from tadvae.data.decode import DatasetView
from tadvae.data.reader import CellReader, load_controls
from tadvae.data.splits import SplitConfig
from tadvae.screen_qc.batches import cramers_v
from tadvae.screen_qc.escaped_cells import GeneMoments, PerturbedCells, divide_cells, responding
from tadvae.screen_qc.target_expression import target_change
from tadvae.screen_qc.thresholds import QcConfig
from tadvae.store.manifest import GROUP_KEYS
from tadvae.store.reader import Store

PERTURBATIONS = [
    *(
        "dataset",
        "context",
        "perturbation",
        "cells",
        "guides",
        "one_guide_share",
        "batches",
        "without_control",
    ),
    *("responding_genes", "escaped"),
]
"""Columns of :attr:`ScreenQc.perturbations`."""
TARGETS = [
    *("dataset", "context", "perturbation", "target", "modality", "cells", "log2_fold_change", "low", "high"),
    *("p", "q", "verdict"),
]
"""Columns of :attr:`ScreenQc.targets`."""
VERDICTS = {
    (-1, -1): "lower, as expected",
    (1, 1): "higher, as expected",
    (-1, 1): "higher, not as expected",
    (1, -1): "lower, not as expected",
    (0, 1): "higher",
    (0, -1): "lower",
}
"""By the sign of the modality and the sign of the change."""
NO_CHANGE = "no change found"


@dataclass(frozen=True)
class ScreenQc:
    """What the quality control found.

    Attributes
    ----------
    perturbations
        One row per (dataset, context, perturbation): cells, number of guides (NaN: no column) and the share
        of the most frequent one, number of batches, share of the cells in batches without control cells,
        responding genes, and the expected share of escaped cells (NaN: too few cells or genes).
    targets
        One row per target and perturbation whose gene is measured: the change of its own expression.
    contexts
        One row per (dataset, context): control cells, perturbed cells, perturbations.
    datasets
        One row per dataset: association of batch and perturbation, cells by number of guides.
    probability
        By dataset, the probability that a cell is perturbed, for the cells in stored order; NaN for control
        cells, and where it cannot be told.
    """

    perturbations: pd.DataFrame
    targets: pd.DataFrame
    contexts: pd.DataFrame
    datasets: pd.DataFrame
    probability: dict[int, np.ndarray] = field(repr=False)


def check_screens(store: Store, config: QcConfig) -> ScreenQc:
    """Check every dataset of single cells; profiles and signatures are left aside."""
    measured = _Measured(store, config)
    rows, targets = [], []
    for dataset in measured.datasets:
        for group in measured.groups_of(dataset):
            rows.append(group.row)
            targets += group.targets
    perturbations = pd.DataFrame(rows, columns=["key", "cells", "responding_genes", "escaped"])
    if len(perturbations):
        perturbations[GROUP_KEYS] = perturbations["key"].tolist()
    else:
        perturbations = perturbations.assign(**dict.fromkeys(GROUP_KEYS, 0))
    perturbations = _named(store, measured.with_batches(_with_guides(store, perturbations)))
    return ScreenQc(
        perturbations=perturbations[PERTURBATIONS],
        targets=_tested(targets, config.fdr),
        contexts=_contexts(store, measured.datasets),
        datasets=measured.summary(),
        probability=measured.probability,
    )


@dataclass(frozen=True, eq=False)
class _Expression:
    """Cells of one group, by gene of the dataset's panel."""

    values: sparse.csc_matrix
    moments: GeneMoments

    @classmethod
    def of(cls, cells: Cells, genes: np.ndarray) -> "_Expression":
        return cls(cells.to_csr(genes).tocsc(), _moments(cells, genes))

    def dense(self, at: np.ndarray) -> np.ndarray:
        """Values of the genes at some positions of the panel, shape (n, len(at))."""
        result: np.ndarray = self.values[:, at].toarray()
        return result


@dataclass(frozen=True)
class _Group:
    row: tuple[tuple[int, int, int], int, int, float]
    targets: list[dict[str, object]]


class _Measured:
    """Reads the cells of a store, perturbation by perturbation."""

    def __init__(self, store: Store, config: QcConfig) -> None:
        self.store, self.config = store, config
        self.datasets = [i for i, entry in enumerate(store.manifest.datasets) if entry.kind == "cells"]
        views = [
            DatasetView(
                np.sort(store.panel(i)["gene_index"].to_numpy(np.int64)),
                "cp10k" if entry.values == "counts" else "none",
            )
            for i, entry in enumerate(store.manifest.datasets)
        ]
        self.reader = CellReader(store, views, SplitConfig(kind="none"))
        self.batches = pd.concat([_batches(store, i) for i in self.datasets] or [_no_batches()])
        self.probability = {i: np.full(store.manifest.datasets[i].n_cells, np.nan) for i in self.datasets}
        self._start = _stored_positions(store)

    def groups_of(self, dataset: int) -> Iterator[_Group]:
        """Every perturbation of a dataset that has cells, in the order of their contexts."""
        bags = self.store.bags[self.store.bags["dataset"] == dataset]
        controls = load_controls(self.reader, bags, self.config.max_controls)
        perturbed = bags[bags["perturbation"] != self.store.control]
        for context, of_context in perturbed.groupby("context"):
            control = controls.get((dataset, int(context)))
            compared = None if control is None else _Expression.of(control, self.reader.views[dataset].genes)
            for block in _blocks(of_context, self.config.cells_at_once):
                yield from self._block(dataset, block, compared)

    def _block(self, dataset: int, bags: pd.DataFrame, control: _Expression | None) -> Iterator[_Group]:
        found: dict[int, list[tuple[int, Cells]]] = {}
        group_of = bags["perturbation"].to_dict()
        for read in self.store.row_groups(bags):
            bag_of_row, cells = self.reader.read(*read)
            for a, b in runs(bag_of_row):
                bag = int(bag_of_row[a])
                found.setdefault(int(group_of[bag]), []).append((bag, cells[a:b]))
        for perturbation, parts in sorted(found.items()):
            key = (dataset, int(bags["context"].iloc[0]), perturbation)
            n = sum(len(part) for _, part in parts)
            if control is None:
                yield _Group((key, n, 0, float("nan")), [])
                continue
            cells = Cells.concat([part for _, part in parts])
            group = _Expression.of(cells, self.reader.views[dataset].genes)
            divided = self._divided(group, control)
            at = np.concatenate([self._start[bag] + np.arange(len(part)) for bag, part in parts])
            self.probability[dataset][at] = divided.probability
            row = (key, n, divided.n_genes, divided.share_escaped)
            yield _Group(row, self._own_genes(key, group, control))

    def _divided(self, group: _Expression, control: _Expression) -> PerturbedCells:
        few = min(group.moments.n, control.moments.n) < self.config.min_cells
        found = responding(group.moments, control.moments, self.config.fdr)
        chosen = found[: self.config.max_genes]
        divided = divide_cells(group.dense(chosen), control.dense(chosen), self.config)
        return PerturbedCells(divided.probability, divided.score, 0 if few else len(found))

    def _own_genes(
        self, key: tuple[int, int, int], group: _Expression, control: _Expression
    ) -> list[dict[str, object]]:
        dataset, context, perturbation = key
        about = self.store.perturbations.iloc[perturbation]
        genes = self.reader.views[dataset].genes
        result: list[dict[str, object]] = []
        for target, gene, modality, sign in zip(
            about["targets"], about["target_genes"], about["modalities"], about["signs"], strict=True
        ):
            one = np.flatnonzero(genes == gene)  # none where it is no gene (-1), or not measured
            if not len(one) or min(group.moments.n, control.moments.n) < 2:
                continue
            change = target_change(group.dense(one)[:, 0], control.dense(one)[:, 0])
            result.append(
                {
                    "dataset": self.store.manifest.datasets[dataset].name,
                    "context": self.store.manifest.contexts[context],
                    "perturbation": about["name"],
                    "target": target,
                    "modality": modality,
                    "cells": group.moments.n,
                    **vars(change),
                    "sign": int(sign),
                }
            )
        return result

    def with_batches(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add the number of batches, and the share of cells in batches without control cells."""
        control = self.batches[self.batches["perturbation"] == self.store.control]
        has_control = set(zip(control["dataset"], control["context"], control["batch"], strict=True))
        rows = self.batches[self.batches["perturbation"] != self.store.control].copy()
        alone = [
            each not in has_control
            for each in zip(rows["dataset"], rows["context"], rows["batch"], strict=True)
        ]
        rows["alone"] = rows["n_cells"] * np.array(alone, bool)
        by_group = rows.groupby(GROUP_KEYS).agg(
            batches=("batch", "nunique"), alone=("alone", "sum"), all=("n_cells", "sum")
        )
        by_group["without_control"] = by_group["alone"] / by_group["all"]
        return table.merge(by_group[["batches", "without_control"]].reset_index(), on=GROUP_KEYS, how="left")

    def summary(self) -> pd.DataFrame:
        """One row per dataset."""
        rows = []
        for i in self.datasets:
            entry, own = self.store.manifest.datasets[i], self.batches[self.batches["dataset"] == i]
            table = own.pivot_table(
                index="batch", columns="perturbation", values="n_cells", aggfunc="sum", fill_value=0
            )
            v, p = cramers_v(table.to_numpy())
            guides = self.store.guides
            by_number: dict[int, int] = {}
            if guides is not None:
                known = guides[(guides["dataset"] == i) & (guides["n_guides"] >= 0)]
                by_number = {int(n): int(c) for n, c in known.groupby("n_guides")["n_cells"].sum().items()}
            counted = sum(by_number.values())
            rows.append(
                {
                    "dataset": entry.name,
                    "cells": entry.n_cells,
                    "batches": int(own["batch"].nunique()),
                    "cramers_v": v,
                    "p": p,
                    "several_guides": (
                        sum(n for guides_, n in by_number.items() if guides_ > 1) / counted
                        if counted
                        else float("nan")
                    ),
                    "cells_by_guides": ", ".join(f"{n}: {c:,}" for n, c in sorted(by_number.items())) or None,
                    "left_out": ", ".join(f"{n:,} {why}" for why, n in entry.dropped.items()) or None,
                }
            )
        columns = [
            *(
                "dataset",
                "cells",
                "batches",
                "cramers_v",
                "p",
                "several_guides",
                "cells_by_guides",
                "left_out",
            ),
        ]
        return pd.DataFrame(rows, columns=columns)


def _no_batches() -> pd.DataFrame:
    return pd.DataFrame(columns=[*GROUP_KEYS, "batch", "n_cells"])


def _batches(store: Store, dataset: int) -> pd.DataFrame:
    """Number of cells by context, perturbation and batch; only the column of batches is read."""
    bags = store.bags[store.bags["dataset"] == dataset]
    keys = bags[GROUP_KEYS]
    total: dict[tuple[int, int, int, str], int] = {}
    for read in store.row_groups(bags):
        table, bag_of_row = store.read_bags(*read, ("batch",))
        frame = pd.DataFrame({"bag": bag_of_row, "batch": table["batch"].to_pandas().astype(str)})
        for (bag, batch), n in frame.groupby(["bag", "batch"]).size().items():
            d, c, p = (int(i) for i in keys.loc[bag])
            key = (d, c, p, batch)
            total[key] = total.get(key, 0) + int(n)
    rows = [(*key, n) for key, n in sorted(total.items())]
    return pd.DataFrame(rows, columns=[*GROUP_KEYS, "batch", "n_cells"])


def _stored_positions(store: Store) -> dict[int, int]:
    """Position of the first cell of every bag in the stored order of its dataset."""
    bags = store.bags.sort_values(["dataset", "shard", "row_group", "first_row"])
    before = bags.groupby("dataset")["n_cells"].cumsum() - bags["n_cells"]
    return {int(bag): int(at) for bag, at in before.items()}


def _blocks(bags: pd.DataFrame, most: int) -> Iterator[pd.DataFrame]:
    """Bags of some perturbations together, of at most so many cells if these are several."""
    sizes = bags.groupby("perturbation")["n_cells"].sum()
    block = np.zeros(len(sizes), np.int64)
    number = filled = 0
    for i, size in enumerate(sizes.tolist()):
        if filled and filled + size > most:
            number, filled = number + 1, 0
        block[i], filled = number, filled + size
    for i in range(number + 1):
        chosen = bags[bags["perturbation"].isin(sizes.index[block == i])]
        if len(chosen):
            yield chosen


def _moments(cells: Cells, genes: np.ndarray) -> GeneMoments:
    """Moments of every gene over some cells, zeros counted."""
    at, values, n = np.searchsorted(genes, cells.gene_ids), cells.values.astype(np.float64), len(cells)
    mean = np.bincount(at, values, len(genes)) / n
    square = np.bincount(at, values**2, len(genes)) / n
    detection = np.bincount(at, values != 0, len(genes)) / n
    return GeneMoments(n, mean, np.maximum(square - mean**2, 0.0), detection)


def _with_guides(store: Store, table: pd.DataFrame) -> pd.DataFrame:
    """Add the number of guides of every perturbation, and the share of the most frequent one."""
    guides = None if store.guides is None else store.guides[store.guides["guide"] != ""]
    if guides is None or guides.empty:
        return table.assign(guides=np.nan, one_guide_share=np.nan)
    cells = guides.groupby([*GROUP_KEYS, "guide"])["n_cells"].sum()
    by_group = cells.groupby(level=GROUP_KEYS)
    found = pd.DataFrame({"guides": by_group.size(), "one_guide_share": by_group.max() / by_group.sum()})
    return table.merge(found.reset_index(), on=GROUP_KEYS, how="left")


def _named(store: Store, table: pd.DataFrame) -> pd.DataFrame:
    """The table with names instead of indices."""
    names = store.perturbations["name"].to_numpy()
    datasets = np.array([entry.name for entry in store.manifest.datasets], object)
    contexts = np.array(store.manifest.contexts, object)
    return table.assign(
        dataset=datasets[table["dataset"].to_numpy(np.int64)],
        context=contexts[table["context"].to_numpy(np.int64)],
        perturbation=names[table["perturbation"].to_numpy(np.int64)],
    )


def _tested(rows: list[dict[str, object]], fdr: float) -> pd.DataFrame:
    """Add false discovery rates over the tests of a dataset, and what each test says."""
    from scipy.stats import false_discovery_control

    table = pd.DataFrame(rows, columns=[*(name for name in TARGETS if name not in ("q", "verdict")), "sign"])
    table["q"] = np.nan
    for _, part in table.groupby("dataset"):
        table.loc[part.index, "q"] = false_discovery_control(part["p"].to_numpy(np.float64), method="bh")
    changes = np.sign(table["log2_fold_change"].to_numpy(np.float64))
    table["verdict"] = [
        VERDICTS.get((int(sign), int(change)), NO_CHANGE) if q < fdr else NO_CHANGE
        for sign, change, q in zip(table["sign"], changes, table["q"], strict=True)
    ]
    table["verdict"] = table["verdict"].astype(object)  # also without a row
    return table[TARGETS]


def _contexts(store: Store, datasets: list[int]) -> pd.DataFrame:
    groups = store.groups[store.groups["dataset"].isin(datasets)]
    control = groups["perturbation"] == store.control
    rows = [
        {
            "dataset": store.manifest.datasets[int(dataset)].name,
            "context": store.manifest.contexts[int(context)],
            "control_cells": int(part["n_cells"][control[part.index]].sum()),
            "perturbed_cells": int(part["n_cells"][~control[part.index]].sum()),
            "perturbations": int((~control[part.index]).sum()),
        }
        for (dataset, context), part in groups.groupby(["dataset", "context"])
    ]
    columns = ["dataset", "context", "control_cells", "perturbed_cells", "perturbations"]
    return pd.DataFrame(rows, columns=columns)
