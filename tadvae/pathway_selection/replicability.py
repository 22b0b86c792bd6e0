"""Replicability of a pathway: whether training from another seed gives the same activity.

NetActivity (Ruiz-Arenas et al. 2024, doi:10.1093/nar/gkae197) trains its network six times from different
seeds and takes, for every gene set, the smallest of the 15 absolute Pearson correlations between the
activities of two runs; sets above 0.7 are kept. Its network is an autoencoder with one unit per gene set,
which sees only the genes of the set (ELU), and a linear decoder to all genes, trained in three steps:

1. for every set separately, a linear autoencoder |P| → 1 → |P|;
2. with the encoder of step 1 frozen, the decoder to all genes;
3. everything together.

Constants are those of its parameter file v11: Adam with 0.01, 0.01 and 0.001, 25, 20 and 50 epochs of batches
of 128; weights start as Keras draws them (Glorot), genes are standardised.

Two runs may find an activity with opposite signs, which ELU transforms differently; step 3 moves activities
to the range in which ELU is linear. With few cells step 3 has few steps, and all scores are lower: for a few
hundred cells use a smaller ``batch_size``.

Cells are used without their labels, also cells that a later split holds out; ``cells: controls`` excludes all
perturbed cells from the selection.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

from tadvae.base.config import Config
from tadvae.base.errors import UserError
from tadvae.cells.normalize import PreprocessConfig
from tadvae.cells.ragged import Cells
from tadvae.data.reader import CellReader, Mapper, loop
from tadvae.data.splits import SplitConfig
from tadvae.data.views import make_views
from tadvae.pathway_selection.coverage import measured_of
from tadvae.pathways.membership import MIN_MEASURED
from tadvae.pathways.sets import PathwaySets
from tadvae.store.reader import Store

EDGES_AT_ONCE = 20_000
"""Number of (set, gene) pairs that step 1 trains at a time; there, sets are independent of each other."""


class ThreeStepConfig(Config):
    """The three training steps of NetActivity."""

    epochs: tuple[int, int, int] = (25, 20, 50)
    """Epochs of the three steps; 0 leaves a step out."""
    learning_rates: tuple[float, float, float] = (0.01, 0.01, 0.001)
    """Learning rates of the three steps."""
    batch_size: int = Field(128, ge=1)
    """Cells per training step; use a smaller value for a few hundred cells."""


class ReplicabilityConfig(Config):
    """How replicability is measured on a store."""

    runs: int = Field(6, ge=2)
    """Number of trainings from different seeds."""
    seed: int = 0
    """Seed of the first training (the others follow it), and of the random choice of cells."""
    max_cells: int = Field(10_000, ge=2)
    """Largest number of cells of each dataset, drawn at random."""
    cells: Literal["all", "controls"] = "all"
    """Cells that are used for training.

    - ``all``: all cells, as published; use it if the pathways may depend on perturbed cells.
    - ``controls``: control cells only; use it so that held-out perturbations have no influence.
    """
    normalize: Literal["cpm", "cp10k"] = "cp10k"
    """How the counts of a cell are scaled before log1p.

    - ``cp10k``: counts per ten thousand; use it for droplet-based single-cell screens.
    - ``cpm``: counts per million; use it if the model is trained with it.
    """
    training: ThreeStepConfig = ThreeStepConfig()
    """The three training steps."""


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Standardised expression, and the genes of each set.

    Attributes
    ----------
    values
        Expression of n cells, float32, shape (n, G).
    pathway, gene
        Set and gene of each edge, int64, shape (E,), sorted by set.
    n_pathways
        Number P of sets; every set has a gene.
    """

    values: np.ndarray
    pathway: np.ndarray
    gene: np.ndarray
    n_pathways: int


def replicability(activities: Sequence[np.ndarray]) -> np.ndarray:
    """Smallest absolute Pearson correlation between the activities of two runs, float64, shape (P,).

    An activity that does not vary has the score 0.

    Parameters
    ----------
    activities
        One array (n, P) per run, of the same cells.
    """
    standard = []
    for activity in activities:
        centred = activity.astype(np.float64) - activity.mean(axis=0, dtype=np.float64)
        norm = np.sqrt((centred**2).sum(axis=0))
        standard.append(np.divide(centred, norm, out=np.zeros_like(centred), where=norm > 1e-12))
    pairs = [
        np.abs((one * other).sum(axis=0)) for i, one in enumerate(standard) for other in standard[i + 1 :]
    ]
    result: np.ndarray = np.minimum.reduce(pairs)
    return result


def train_once(data: TrainingData, config: ThreeStepConfig, seed: int) -> np.ndarray:
    """Train from one seed and return the activities, float32, (n, P); they are reproducible for a seed."""
    generator = torch.Generator().manual_seed(seed)
    # copies: arrays from Ray are read-only, and torch warns about these
    values, pathway, gene = (torch.tensor(part) for part in (data.values, data.pathway, data.gene))
    n_genes, n_pathways = values.shape[1], data.n_pathways
    size = torch.bincount(pathway, minlength=n_pathways)  # (P,)
    # Glorot: ±√(6 / (inputs + outputs)) of the layer |P| → 1, and of its mirror 1 → |P|
    weight = _uniform(generator, len(gene)) * torch.sqrt(6.0 / (size[pathway] + 1.0))  # (E,)
    mirror = _uniform(generator, len(gene)) * torch.sqrt(6.0 / (size[pathway] + 1.0))  # (E,)
    bias = torch.zeros(n_pathways)
    if config.epochs[0]:
        last = torch.cumsum(size, 0)
        for first_set, last_set in _chunks(last.tolist()):
            a = int(last[first_set] - size[first_set])
            b = int(last[last_set - 1])
            mini = (weight[a:b], bias[first_set:last_set], mirror[a:b])
            trained = _train_mini(values, pathway[a:b] - first_set, gene[a:b], mini, config, generator)
            weight[a:b], bias[first_set:last_set] = trained
    limit = (6.0 / (n_pathways + n_genes)) ** 0.5
    decoder = nn.Parameter(_uniform(generator, n_pathways, n_genes) * limit)  # (P, G)
    offset = nn.Parameter(torch.zeros(n_genes))
    weight, bias = nn.Parameter(weight), nn.Parameter(bias)

    def encode(rows: Tensor) -> Tensor:
        return nn.functional.elu(_weighted_sums(rows, pathway, gene, weight, bias))

    if config.epochs[1]:
        with torch.no_grad():
            frozen = encode(values)
        optimizer = _adam([decoder, offset], config.learning_rates[1])
        for batch in _batches(len(values), config.batch_size, config.epochs[1], generator):
            loss = nn.functional.mse_loss(frozen[batch] @ decoder + offset, values[batch])
            _step(optimizer, loss)
    optimizer = _adam([weight, bias, decoder, offset], config.learning_rates[2])
    for batch in _batches(len(values), config.batch_size, config.epochs[2], generator):
        rows = values[batch]
        _step(optimizer, nn.functional.mse_loss(encode(rows) @ decoder + offset, rows))
    with torch.no_grad():
        return encode(values).numpy()


def _train_mini(
    values: Tensor,
    pathway: Tensor,
    gene: Tensor,
    start: tuple[Tensor, Tensor, Tensor],
    config: ThreeStepConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Step 1 for some sets: encoder weights (E,) and biases (P,).

    The losses of the sets are summed. Sets share no parameters, and Adam treats each parameter separately, so
    the result is the same as training each set alone.
    """
    weight, bias, mirror = (nn.Parameter(part.clone()) for part in start)
    offset = nn.Parameter(torch.zeros(len(gene)))
    share = (
        1.0 / torch.bincount(pathway, minlength=len(bias))[pathway].float()
    )  # (E,) the loss of a set is a mean over its genes
    optimizer = _adam([weight, bias, mirror, offset], config.learning_rates[0])
    for batch in _batches(len(values), config.batch_size, config.epochs[0], generator):
        rows = values[batch]
        activity = _weighted_sums(rows, pathway, gene, weight, bias)  # (B, P)
        error = activity[:, pathway] * mirror + offset - rows[:, gene]  # (B, E)
        _step(optimizer, (error**2 * share).sum() / len(rows))
    return weight.detach(), bias.detach()


def _weighted_sums(rows: Tensor, pathway: Tensor, gene: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Weighted sums ``Σ_g w_pg x_g + b_p`` over the genes of each set, shape (B, P)."""
    # Cells are the last axis inside, so that index_add adds contiguous rows.
    parts = rows.T[gene] * weight[:, None]  # (E, B)
    sums = torch.zeros(len(bias), len(rows), dtype=rows.dtype).index_add(0, pathway, parts)  # (P, B)
    return sums.T + bias


def _uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator) * 2.0 - 1.0


def _adam(parameters: list[nn.Parameter], rate: float) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=rate, eps=1e-7)  # Keras' ε


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _batches(n: int, size: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from torch.randperm(n, generator=generator).split(size)


def _chunks(last_edge: list[int]) -> list[tuple[int, int]]:
    """Spans of whole sets with about :data:`EDGES_AT_ONCE` edges."""
    spans, first, begun = [], 0, 0
    for p, end in enumerate(last_edge):
        if end - begun >= EDGES_AT_ONCE or p == len(last_edge) - 1:
            spans.append((first, p + 1))
            first, begun = p + 1, end
    return spans


def replicability_on_store(
    store: Store,
    sets: PathwaySets,
    config: ReplicabilityConfig,
    min_measured: int = MIN_MEASURED,
    mapper: Mapper = loop,
) -> pd.DataFrame:
    """Replicability of each set in each dataset, shape (P, D), from 0 to 1; NaN if the set is not visible.

    Parameters
    ----------
    mapper
        Runs the trainings, ``runs`` per dataset; all are independent.

    Raises
    ------
    UserError
        If a dataset has fewer than two cells of the wanted kind.
    """
    measured = measured_of(store)
    seen = measured.counts(sets) >= min_measured  # (D, P)
    key_of = measured.key_of(sets)
    position = {key: i for i, key in enumerate(store.genes["gene"])}

    def members_of(dataset: int, chosen: np.ndarray) -> list[np.ndarray]:
        """Measured genes of some sets, as sorted positions in the vocabulary."""
        panel = set(store.panel(dataset)["gene_index"].tolist())
        found = [{position.get(key_of[gene] or "", -1) for gene in sets.genes[p]} for p in chosen]
        return [np.array(sorted(part & panel), np.int64) for part in found]

    jobs, rows = [], []
    for d, name in enumerate(measured.datasets):
        chosen = np.flatnonzero(seen[d])
        if len(chosen):
            rows.append((name, chosen))
            data = _training_data(store, d, members_of(d, chosen), config)
            jobs += [(data, config.training, config.seed + run) for run in range(config.runs)]
    activities = mapper(train_once, jobs)
    result = pd.DataFrame(np.nan, index=pd.Index(sets.ids), columns=measured.datasets)
    for i, (name, chosen) in enumerate(rows):
        scores = replicability(activities[i * config.runs : (i + 1) * config.runs])
        result.iloc[chosen, result.columns.get_loc(name)] = scores
    return result


def _training_data(
    store: Store, dataset: int, members: list[np.ndarray], config: ReplicabilityConfig
) -> TrainingData:
    """Expression of cells of one dataset on the genes of some sets."""
    genes = np.unique(np.concatenate(members))
    return TrainingData(
        values=_standardised(_random_cells(store, dataset, config), genes),
        pathway=np.repeat(np.arange(len(members)), [len(part) for part in members]),
        gene=np.searchsorted(genes, np.concatenate(members)),
        n_pathways=len(members),
    )


def _random_cells(store: Store, dataset: int, config: ReplicabilityConfig) -> Cells:
    """At most ``max_cells`` cells of a dataset, from bags in random order."""
    bags = store.bags[store.bags["dataset"] == dataset]
    if config.cells == "controls":
        bags = bags[bags["perturbation"] == store.control]
    name = store.manifest.datasets[dataset].name
    if bags["n_cells"].sum() < 2:
        raise UserError(
            f"dataset '{name}': expected {config.cells} cells to train the pathway layer on, found "
            f"{int(bags['n_cells'].sum())}; set replicability.cells=all or leave replicability out."
        )
    order = np.random.default_rng([config.seed, dataset]).permutation(len(bags))
    bags = bags.iloc[order]
    bags = bags[bags["n_cells"].cumsum() - bags["n_cells"] < config.max_cells]
    views = make_views(store, bags, SplitConfig(kind="none"), PreprocessConfig(normalize=config.normalize))
    reader = CellReader(store, views, SplitConfig(kind="none"))
    parts = [reader.read(*read)[1] for read in store.row_groups(bags)]
    return Cells.concat(parts)[: config.max_cells]


def _standardised(cells: Cells, genes: np.ndarray) -> np.ndarray:
    """Values on some genes, each with mean 0 and standard deviation 1 (0 if it does not vary)."""
    at = np.searchsorted(genes, cells.gene_ids)
    here = np.append(genes, -1)[at] == cells.gene_ids
    row = np.repeat(np.arange(len(cells)), np.diff(cells.offsets))
    values = np.zeros((len(cells), len(genes)), np.float32)
    values[row[here], at[here]] = cells.values[here]
    values -= values.mean(axis=0)
    deviation = values.std(axis=0)
    result: np.ndarray = np.divide(values, deviation, out=np.zeros_like(values), where=deviation > 1e-6)
    return result
