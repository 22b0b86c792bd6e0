"""Simulated screens with known causal parameters, to test whether a model recovers them.

The generative process is that of the model (discrepancy VAE, Zhang et al. 2023; T-AD-VAE). For a cell of
context c and batch h with targets b ∈ {0,1}^T, over K factors, P pathways and G genes::

    z ~ N(m_c, I_K)                                     exogenous
    s_t = sign(modality) · |s_t| · onehot(k(t))         a target acts on exactly one factor
    e = Σ_t b_t s_t + Σ_{t<t'} b_t b_t' c_tt'           c: epistasis, zero for most pairs
    u = (z + e) (I − G*)⁻¹                              G* sparse, strictly upper triangular
    a_p = l_p · u_k(p) + ε,  ε ~ N(0, activity_noise²)  one main factor drives a pathway
    η_g = β_g + γ_cg + δ_hg + Σ_p w_pg a_p + b_g · sign(modality) · own_effect
    r = softmax(η over the screen's panel),  d ~ LogNormal(log depth, depth_sd²)
    x_g ~ Poisson(d r_g Γ_g),  Γ_g ~ Gamma(mean 1, variance dispersion)

Cells that escape have the label of a perturbation, but b = 0; true profiles are those of perturbed cells. In
a screen with doses, b_t is the share ``d^n / (d^n + e^n)`` of the full effect (:func:`dose_response`). b_g
is 1 if gene g itself is perturbed. CRISPRa has sign +1, CRISPRi −1. The epistasis of a pair is a shift of
one factor in addition to the shifts of its targets; if it is zero, doubles are additive in latent space.
Factors are numbered in causal order: ``graph[i, j]``, i < j, is the effect of factor i on factor j. Every
target belongs to a pathway that its own factor drives with a positive loading, so pathways carry information
on targets that were never perturbed. All data, including the names, are synthetic.
"""

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.linalg import solve_triangular

from tadvae.pathways.sets import PathwaySets
from tadvae.simulation.config import SimulationConfig

CONTROL = "control"
SIGN = {"CRISPRa": 1.0, "CRISPRi": -1.0}
TARGET_SUM = 1e4
"""True profiles are means of ``log1p(counts / total counts of the cell * TARGET_SUM)``."""

_CHUNK = 2048  # cells whose rates are dense in memory at once
_COLOURS = ("amber", "azure", "coral", "ivory", "jade", "lilac", "ochre", "olive", "pearl", "scarlet", "teal")
_NOUNS = ("response", "synthesis", "transport", "repair", "signalling", "turnover", "assembly")


@dataclass(frozen=True, eq=False)
class ScreenTruth:
    """True parameters of one screen with C cells, n measured genes, S conditions and L contexts."""

    name: str
    conditions: list[str]  # control, singles, doubles; with doses A@0.1uM
    contexts: list[str]
    panel: np.ndarray  # (n,) positions of the measured genes, ascending
    design: np.ndarray  # (S, T) 1 where a condition perturbs a target
    shift: np.ndarray  # (T,) signed by the modality
    batch_effect: np.ndarray  # (batches, n) log rate
    z: np.ndarray  # (C, K) exogenous, before any shift
    u: np.ndarray  # (C, K)
    activity: np.ndarray  # (C, P)
    mean_u: np.ndarray  # (L, S, K) exact expectation
    escaped: np.ndarray  # (C,) whether a cell has the label of a perturbation, but no effect
    profile: np.ndarray  # (L, S, n) mean log1p of counts per TARGET_SUM, over truth_cells fresh cells


@dataclass(frozen=True, eq=False)
class Truth:
    """True parameters that all screens share; positions refer to the lists of names."""

    genes: list[str]  # G
    pathways: list[str]  # P
    targets: list[str]  # T
    contexts: list[str]
    graph: np.ndarray  # (K, K) strictly upper triangular, G* above
    pathway_factor: np.ndarray  # (P,)
    loading: np.ndarray  # (P,)
    weight: np.ndarray  # (P, G) log rate per unit of activity, 0 outside the pathway
    target_gene: np.ndarray  # (T,) positions among the genes
    target_factor: np.ndarray  # (T,)
    magnitude: np.ndarray  # (T,) absolute shift
    epistasis: np.ndarray  # (T, T, K) symmetric in the targets, c above
    baseline: np.ndarray  # (G,) log rate
    context_mean: np.ndarray  # (contexts, K)
    context_effect: np.ndarray  # (contexts, G) log rate
    screens: list[ScreenTruth]


@dataclass(frozen=True, eq=False)
class Simulation:
    """Simulated screens, their pathways, and the true parameters."""

    config: SimulationConfig
    screens: list[ad.AnnData]
    sets: PathwaySets
    truth: Truth


def latent(exogenous: np.ndarray, graph: np.ndarray) -> np.ndarray:
    """Solve ``u = exogenous (I − graph)⁻¹`` for rows ``(C, K)``; ``graph`` is strictly upper triangular."""
    lower = np.eye(graph.shape[0]) - graph.T
    result: np.ndarray = solve_triangular(lower, exogenous.T, lower=True, unit_diagonal=True).T
    return result


def latent_shift(design: np.ndarray, shift: np.ndarray, truth: Truth) -> np.ndarray:
    """Shift of the factors ``(C, K)`` by the targets in each row of ``design`` ``(C, T)``."""
    by_factor = np.zeros((shift.size, truth.graph.shape[0]))
    by_factor[np.arange(shift.size), truth.target_factor] = shift
    partners = np.tensordot(design, truth.epistasis, axes=1)  # (C, T, K)
    result: np.ndarray = design @ by_factor + np.einsum("ct,ctk->ck", design, partners) / 2
    return result


def simulate(config: SimulationConfig) -> Simulation:
    """Simulate screens with known parameters; the same config gives the same numbers.

    ``X`` holds int32 counts (CSR); ``obs`` the categories ``condition`` (``control``, ``A``, ``A+B``),
    ``cell_type`` (the context) and ``batch``. Row c of a :class:`ScreenTruth` is cell c of its screen.
    """
    designs = [_design(config, index) for index in range(len(config.screens))]
    truth = _world(config, designs)
    screens = []
    for index, panel in enumerate(_panels(config, truth, designs)):
        screen, screen_truth = _screen(config, index, truth, designs[index], panel)
        screens.append(screen)
        truth.screens.append(screen_truth)
    words = [f"simulated {colour} {noun}" for noun in _NOUNS for colour in _COLOURS]
    names = [f"{words[p % len(words)]} {p + 1}" for p in range(config.n_pathways)]
    genes = [[truth.genes[g] for g in np.flatnonzero(row)] for row in truth.weight]
    return Simulation(config, screens, PathwaySets(truth.pathways, names, genes, "simulation"), truth)


def _rng(config: SimulationConfig, *stream: int) -> np.random.Generator:
    """A random generator per part, so that for example more cells do not change the parameters."""
    return np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=stream))


def _design(config: SimulationConfig, index: int) -> np.ndarray:
    """Targets of each condition of a screen, ``(S, T)``: none, one, two.

    The singles are a window of neighbouring targets: it covers the factors evenly and overlaps the
    windows of the other screens.
    """
    screen, n, T = config.screens[index], config.screens[index].n_singles, config.n_targets
    window = (index * T // len(config.screens) + np.arange(n)) % T
    pairs = list(screen.doubles or ())
    if screen.doubles is None:
        every = list(combinations(range(n), 2))
        chosen = _rng(config, 1, index).choice(len(every), screen.n_doubles, replace=False)
        pairs = [every[i] for i in np.sort(chosen)]
    design = np.zeros((1 + n + len(pairs), T))
    design[1 + np.arange(n), window] = 1
    for row, pair in enumerate(pairs, start=1 + n):
        design[row, window[list(pair)]] = 1
    return design


def _world(config: SimulationConfig, designs: list[np.ndarray]) -> Truth:
    """Draw the parameters that all screens share."""
    rng = _rng(config, 0)
    G, K, P, T = config.n_genes, config.n_factors, config.n_pathways, config.n_targets
    rows, columns = np.triu_indices(K, k=1)
    edges = rng.permutation(rows.size)[: round(config.edge_fraction * rows.size)]
    graph = np.zeros((K, K))
    weights = rng.choice([-1, 1], edges.size) * rng.uniform(*config.edge_range, edges.size)
    graph[rows[edges], columns[edges]] = weights

    pathway_factor = rng.permutation(np.arange(P) % K)
    first = np.unique(pathway_factor, return_index=True)[1]  # (K,) the first pathway of each factor
    loading = rng.uniform(*config.loading_range, P)
    suppressed = rng.permutation(np.setdiff1d(np.arange(P), first))
    loading[suppressed[: round(config.negative_loadings * P)]] *= -1

    target_gene = rng.choice(G, T, replace=False)
    target_factor = rng.permutation(K)[np.arange(T) % K]
    keys = rng.random((P, G))  # the genes of lowest key are members, targets before all others
    keys[first[target_factor], target_gene] = -1
    sizes = rng.integers(*config.genes_per_pathway, P, endpoint=True)
    member = keys.argsort(axis=1).argsort(axis=1) < sizes[:, None]  # (P, G)

    doubles = np.unique(np.concatenate([d[d.sum(axis=1) == 2] for d in designs]), axis=0)
    order = rng.permutation(len(doubles))[: round(config.epistasis_fraction * len(doubles))]
    epistasis = np.zeros((T, T, K))
    for pair in doubles[order]:
        t, other = np.flatnonzero(pair)
        factor, extra = rng.integers(K), rng.choice([-1, 1]) * config.epistasis
        epistasis[t, other, factor] = epistasis[other, t, factor] = extra
    contexts = list(dict.fromkeys(name for screen in config.screens for name in screen.contexts))
    genes = [f"SIM{g + 1:04d}" for g in range(G)]
    return Truth(
        genes=genes,
        pathways=[f"SIMPATH:{p + 1:04d}" for p in range(P)],
        targets=[genes[g] for g in target_gene],
        contexts=contexts,
        graph=graph,
        pathway_factor=pathway_factor,
        loading=loading,
        weight=np.where(member, rng.uniform(0.5, 1.5, (P, G)), 0.0),
        target_gene=target_gene,
        target_factor=target_factor,
        magnitude=rng.uniform(*config.shift_range, T),
        epistasis=epistasis,
        baseline=config.baseline_sd * rng.standard_normal(G),
        context_mean=config.context_sd * rng.standard_normal((len(contexts), K)),
        context_effect=config.context_sd * rng.standard_normal((len(contexts), G)),
        screens=[],
    )


def dose_curves(config: SimulationConfig) -> tuple[np.ndarray, np.ndarray]:
    """Half-maximal dose and Hill slope of each target, (T,) each."""
    rng = _rng(config, 6)
    low, high = np.log(config.dose_range).tolist()
    midpoint = np.exp(rng.uniform(low, high, config.n_targets))
    return midpoint, rng.uniform(*config.slope_range, config.n_targets)


def dose_response(config: SimulationConfig, dose: np.ndarray) -> np.ndarray:
    """Share of the full shift of each target, ``d^n / (d^n + e^n)``, (S, T); 1 without a dose."""
    midpoint, slope = dose_curves(config)
    powers = np.nan_to_num(dose, nan=1.0)[:, None] ** slope
    return np.where(np.isnan(dose)[:, None], 1.0, powers / (powers + midpoint**slope))


def _panels(config: SimulationConfig, truth: Truth, designs: list[np.ndarray]) -> list[np.ndarray]:
    """Draw the measured genes of each screen.

    A screen measures its targets, then the genes assigned to it (every gene is assigned to one screen, so
    that together the panels cover as many genes as possible), then others.
    """
    home = _rng(config, 2).permutation(np.arange(config.n_genes) % len(config.screens))
    panels = []
    for index, (screen, design) in enumerate(zip(config.screens, designs, strict=True)):
        keys = _rng(config, 3, index).random(config.n_genes) - (home == index)
        keys[truth.target_gene[design.any(axis=0)]] = -2
        panels.append(np.sort(keys.argsort()[: screen.n_genes]))
    return panels


def _screen(
    config: SimulationConfig, index: int, truth: Truth, design: np.ndarray, panel: np.ndarray
) -> tuple[ad.AnnData, ScreenTruth]:
    """Draw the cells of one screen."""
    screen, rng = config.screens[index], _rng(config, 4, index)
    dose = np.full(len(design), np.nan)  # (S,) of each condition; the control has none
    if screen.doses:
        dose = np.concatenate([[np.nan], np.tile(screen.doses, len(design) - 1)])
        at = np.concatenate([[0], np.repeat(np.arange(1, len(design)), len(screen.doses))])
        design = design[at] * dose_response(config, dose)  # (S, T) between 0 and 1
    sign, n_batches, n_conditions = SIGN[screen.modality], screen.n_batches, len(design)
    lines = np.array([truth.contexts.index(name) for name in screen.contexts])  # (L,)
    shift = sign * truth.magnitude  # (T,)
    batch_effect = config.batch_sd * rng.standard_normal((n_batches, panel.size))
    own = sign * config.own_effect * (panel == truth.target_gene[:, None])  # (T, n)
    fixed = truth.baseline[panel] + truth.context_effect[:, panel]  # (contexts, n)

    def draw(rng: np.random.Generator, condition: np.ndarray, line: np.ndarray, batch: np.ndarray) -> Any:
        """Draw z, u, activities and counts of cells, given the condition, context and batch of each."""
        targets, cells = design[condition], condition.size
        z = truth.context_mean[line] + rng.standard_normal((cells, config.n_factors))  # (C, K)
        u = latent(z + latent_shift(targets, shift, truth), truth.graph)  # (C, K)
        noise = config.activity_noise * rng.standard_normal((cells, config.n_pathways))
        activity = truth.loading * u[:, truth.pathway_factor] + noise  # (C, P)
        log_rate = fixed[line] + batch_effect[batch] + activity @ truth.weight[:, panel] + targets @ own
        rate = np.exp(log_rate - log_rate.max(axis=1, keepdims=True))  # (C, n)
        depth = screen.depth * np.exp(screen.depth_sd * rng.standard_normal(cells))
        rate *= (depth / rate.sum(axis=1))[:, None]
        if config.dispersion:
            rate *= rng.gamma(1 / config.dispersion, config.dispersion, rate.shape)
        return z, u, activity, rng.poisson(rate).astype(np.int32)

    def profile(line: int, condition: int) -> np.ndarray:
        """Mean profile of newly drawn cells, ``(n,)``; all conditions share random numbers."""
        cells = np.arange(config.truth_cells)
        same = np.zeros_like(cells)
        counts = draw(_rng(config, 5, index, line), same + condition, same + line, cells % n_batches)[-1]
        total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
        result: np.ndarray = np.log1p(counts * (TARGET_SUM / total)).mean(axis=0)
        return result

    repeats = np.where(np.arange(n_conditions) == 0, screen.control_cells, screen.cells_per_condition)
    # Shuffled because files of real screens are not sorted by condition.
    cells = rng.permutation(repeats.sum() * lines.size)
    condition = np.tile(np.repeat(np.arange(n_conditions), repeats), lines.size)[cells]  # (C,)
    line = np.repeat(lines, repeats.sum())[cells]  # (C,)
    batch = rng.integers(n_batches, size=cells.size)  # (C,)
    escaped = (_rng(config, 6, index).random(cells.size) < screen.escaped) & (condition > 0)  # (C,)
    truly = np.where(escaped, 0, condition)
    chunks = [slice(start, start + _CHUNK) for start in range(0, cells.size, _CHUNK)]
    drawn = [draw(rng, truly[c], line[c], batch[c]) for c in chunks]
    z, u, activity = (np.concatenate(parts) for parts in list(zip(*drawn, strict=True))[:3])

    names = ["+".join(sorted(truth.targets[t] for t in np.flatnonzero(row))) or CONTROL for row in design]
    batches = [f"{screen.name}-batch{b + 1}" for b in range(n_batches)]
    obs = pd.DataFrame(
        {
            "condition": pd.Categorical(np.array(names)[condition], list(dict.fromkeys(names))),
            "cell_type": pd.Categorical.from_codes(line, pd.Index(truth.contexts)).remove_unused_categories(),
            "batch": pd.Categorical.from_codes(batch, pd.Index(batches)),
        },
        index=[f"{screen.name}-{cell + 1:06d}" for cell in range(cells.size)],
    )
    if screen.doses:
        obs["dose"] = dose[condition]
        names = [names[0], *(f"{name}@{each:g}uM" for name, each in zip(names[1:], dose[1:], strict=True))]
    X = sparse.vstack([sparse.csr_matrix(parts[-1]) for parts in drawn], format="csr")
    var = pd.DataFrame(index=[truth.genes[g] for g in panel])
    mean = truth.context_mean[lines][:, None] + latent_shift(design, shift, truth)  # (L, S, K)
    return ad.AnnData(X=X, obs=obs, var=var), ScreenTruth(
        name=screen.name,
        conditions=names,
        contexts=list(screen.contexts),
        panel=panel,
        design=design,
        shift=shift,
        batch_effect=batch_effect,
        z=z,
        u=u,
        activity=activity,
        escaped=escaped,
        mean_u=latent(mean.reshape(-1, config.n_factors), truth.graph).reshape(mean.shape),
        profile=np.stack([[profile(i, s) for s in range(n_conditions)] for i in lines]),
    )
