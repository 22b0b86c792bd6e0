"""Simulated screens: deterministic, of the promised form, and true to their equations."""

import json

import anndata as ad
import numpy as np
import pytest
import yaml
from scipy import sparse

import tadvae.simulation.files as module
from tadvae.base.errors import UserError
from tadvae.pathways.gmt import read_gmt
from tadvae.simulation.config import ScreenConfig, SimulationConfig
from tadvae.simulation.files import simulate_to, write_simulation
from tadvae.simulation.simulate import latent, simulate

SMALL = {
    "n_genes": 120,
    "n_factors": 3,
    "n_pathways": 6,
    "genes_per_pathway": (5, 10),
    "n_targets": 6,
    "edge_fraction": 1.0,
    "truth_cells": 20,
    "screens": (
        ScreenConfig(
            name="up", n_genes=80, n_singles=4, n_doubles=5, control_cells=40, cells_per_condition=6,
        ),
        ScreenConfig(
            name="down", modality="CRISPRi", contexts=("SIMLINE1", "SIMLINE2"), n_genes=70, n_singles=4,
            doubles=((0, 1), (3, 1)), control_cells=30, cells_per_condition=5, n_batches=3,
        ),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def default():
    return simulate(SimulationConfig())


@pytest.fixture(scope="module")
def small():
    return simulate(SimulationConfig(**SMALL))


def pieces(simulation):
    """Screens with their truths and configs."""
    return list(zip(simulation.screens, simulation.truth.screens, simulation.config.screens, strict=True))


def log_profiles(adata):
    counts = adata.X.toarray().astype(np.float64)
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)


def test_the_seed_decides_everything(small):
    again, other = simulate(SimulationConfig(**SMALL)), simulate(SimulationConfig(**SMALL, seed=1))
    for one, two, three in zip(small.screens, again.screens, other.screens, strict=True):
        np.testing.assert_array_equal(one.X.toarray(), two.X.toarray())
        assert one.obs.equals(two.obs)
        assert one.var_names.equals(two.var_names)
        assert not np.array_equal(one.X.toarray(), three.X.toarray())
    for one, two in zip(small.truth.screens, again.truth.screens, strict=True):
        np.testing.assert_array_equal(one.profile, two.profile)
        np.testing.assert_array_equal(one.activity, two.activity)
    assert small.sets == again.sets
    assert small.sets != other.sets


def test_more_cells_leave_the_truth_alone(small):
    screens = tuple(s.model_copy(update={"cells_per_condition": 9, "depth": 500.0}) for s in SMALL["screens"])
    more = simulate(SimulationConfig(**{**SMALL, "screens": screens}))
    np.testing.assert_array_equal(more.truth.graph, small.truth.graph)
    np.testing.assert_array_equal(more.truth.weight, small.truth.weight)
    for one, two in zip(small.truth.screens, more.truth.screens, strict=True):
        np.testing.assert_array_equal(one.panel, two.panel)
        np.testing.assert_array_equal(one.mean_u, two.mean_u)


def test_escaped_cells_have_no_shift(small):
    screens = tuple(screen.model_copy(update={"escaped": 0.4}) for screen in SMALL["screens"])
    other = simulate(SimulationConfig(**{**SMALL, "screens": screens}))
    for before, after in zip(pieces(small), pieces(other), strict=True):
        escaped = after[1].escaped
        labels = after[0].obs["condition"].to_numpy()
        np.testing.assert_array_equal(labels, before[0].obs["condition"].to_numpy())
        assert not before[1].escaped.any()
        assert not escaped[labels == "control"].any()
        assert 0.2 < escaped[labels != "control"].mean() < 0.6
        np.testing.assert_allclose(after[1].u[escaped], latent(after[1].z[escaped], other.truth.graph))
        np.testing.assert_array_equal(after[1].u[~escaped], before[1].u[~escaped])
        np.testing.assert_array_equal(after[1].profile, before[1].profile)


def test_default_sizes(default):
    a, b = default.screens
    assert a.shape == (300 + 28 * 75, 600)
    assert b.shape == (2 * (300 + 14 * 75), 600)
    assert len(set(a.var_names) | set(b.var_names)) == 800
    assert len(set(a.var_names) & set(b.var_names)) == 400
    assert len(default.sets) == 24
    assert all(15 <= len(genes) <= 30 for genes in default.sets.genes)
    targets = [set(np.flatnonzero(part.design.any(axis=0))) for part in default.truth.screens]
    assert targets[0] & targets[1]
    assert targets[0] | targets[1] == set(range(15))
    for chosen in targets:  # every factor is perturbed in every screen
        assert set(default.truth.target_factor[list(chosen)]) == set(range(6))


@pytest.mark.parametrize("which", ["default", "small"])
def test_form_of_the_screens(which, request):
    simulation = request.getfixturevalue(which)
    truth = simulation.truth
    for adata, part, config in pieces(simulation):
        assert sparse.isspmatrix_csr(adata.X)
        assert np.issubdtype(adata.X.dtype, np.integer)
        assert adata.X.data.min() >= 0
        assert adata.obs_names.is_unique
        assert list(adata.var_names) == [truth.genes[g] for g in part.panel]
        assert np.all(np.diff(part.panel) > 0)
        counts = adata.obs.groupby(["condition", "cell_type"], observed=True).size()
        assert counts.size == len(part.conditions) * len(config.contexts)
        assert set(counts["control"]) == {config.control_cells}
        assert set(counts.drop("control")) == {config.cells_per_condition}
        assert part.conditions[0] == "control"
        for name, row in zip(part.conditions[1:], part.design[1:], strict=True):
            assert set(name.split("+")) == {truth.targets[t] for t in np.flatnonzero(row)}
            assert set(name.split("+")) <= set(adata.var_names)
        assert adata.obs["batch"].nunique() == config.n_batches
        assert part.z.shape == part.u.shape == (adata.n_obs, simulation.config.n_factors)
        assert part.activity.shape == (adata.n_obs, simulation.config.n_pathways)
        assert part.profile.shape == (len(config.contexts), len(part.conditions), adata.n_vars)
        total = np.asarray(adata.X.sum(axis=1)).ravel()
        assert abs(np.log(np.median(total) / config.depth)) < 0.2


def test_chosen_doubles(small):
    part = small.truth.screens[1]
    singles = part.conditions[1:5]
    assert [set(name.split("+")) for name in part.conditions[5:]] == [
        {singles[0], singles[1]}, {singles[3], singles[1]}
    ]  # fmt: skip


def test_structure_of_the_truth(default):
    truth = default.truth
    np.testing.assert_array_equal(truth.graph, np.triu(truth.graph, k=1))
    assert np.count_nonzero(truth.graph) == round(0.35 * 15)
    np.testing.assert_array_equal(np.bincount(truth.pathway_factor), np.full(6, 4))
    assert (truth.loading < 0).sum() == 6
    assert [[truth.genes[g] for g in np.flatnonzero(row)] for row in truth.weight] == default.sets.genes
    for t, g in enumerate(truth.target_gene):  # pathways know what a target does
        homes = truth.weight[:, g] > 0
        assert np.any(homes & (truth.pathway_factor == truth.target_factor[t]) & (truth.loading > 0))
    a, b = truth.screens
    np.testing.assert_array_equal(a.shift, -b.shift)
    assert np.all(a.shift > 0)


def test_u_against_a_loop(small):
    """``u_j = z_j + Σ_t b_t s_t [k(t) = j] + epistasis_j + Σ_{i<j} u_i G_ij``, in float64."""
    truth = small.truth
    position = {name: t for t, name in enumerate(truth.targets)}
    assert np.count_nonzero(truth.graph) == 3
    for adata, part, _ in pieces(small):
        for cell, condition in enumerate(adata.obs["condition"]):
            targets = [position[name] for name in condition.split("+") if name != "control"]
            u = np.zeros(3)
            for j in range(3):
                u[j] = part.z[cell, j]
                for t in targets:
                    u[j] += part.shift[t] * (truth.target_factor[t] == j)
                if len(targets) == 2:
                    u[j] += truth.epistasis[targets[0], targets[1], j]
                for i in range(j):
                    u[j] += u[i] * truth.graph[i, j]
            np.testing.assert_allclose(part.u[cell], u, rtol=1e-12, atol=1e-12)


def test_mean_u_is_the_mean_of_u(default):
    for adata, part, _ in pieces(default):
        exogenous = part.z - np.stack([default.truth.context_mean[default.truth.contexts.index(name)]
                                       for name in adata.obs["cell_type"]])  # fmt: skip
        centred = part.u - latent(exogenous, default.truth.graph)
        line = np.array([part.contexts.index(name) for name in adata.obs["cell_type"]])
        np.testing.assert_allclose(centred, part.mean_u[line, adata.obs["condition"].cat.codes], atol=1e-12)


def test_activity_follows_its_factor(default):
    truth = default.truth
    for _, part, _ in pieces(default):
        rest = part.activity - truth.loading * part.u[:, truth.pathway_factor]
        assert abs(rest.std() - 0.1) < 0.002
        assert abs(rest.mean()) < 0.002


def excess(part):
    """Latent effect of doubles beyond the sum of their singles, ``(L, doubles, K)``."""
    effect = part.mean_u - part.mean_u[:, :1]
    single = {
        t: effect[:, s] for s, (t, *more) in enumerate(map(np.flatnonzero, part.design[1:]), 1) if not more
    }
    doubles = [s for s, row in enumerate(part.design) if row.sum() == 2]
    return np.stack(
        [effect[:, s] - sum(single[t] for t in np.flatnonzero(part.design[s])) for s in doubles], 1
    )


def test_doubles_are_additive_without_epistasis():
    additive = simulate(SimulationConfig(**SMALL, epistasis=0.0))
    for part in additive.truth.screens:
        np.testing.assert_allclose(excess(part), 0, atol=1e-12)


def test_epistasis_touches_the_chosen_share(default):
    inverse = np.eye(6) - default.truth.graph
    beyond = {}
    for part in default.truth.screens:
        direct = excess(part)[0] @ inverse  # (doubles, K): before it spreads over the graph
        beyond |= dict(zip(part.conditions[-len(direct):], direct, strict=True))  # fmt: skip
    touched = [value for value in beyond.values() if np.abs(value).max() > 1e-9]
    assert len(touched) == round(0.25 * len(beyond))
    for value in touched:
        np.testing.assert_allclose(np.sort(np.abs(value)), [0, 0, 0, 0, 0, 1], atol=1e-12)


def test_profiles_are_the_means_of_the_counts(default):
    """Observed and true means differ by no more than their standard errors."""
    for adata, part, config in pieces(default):
        logs = log_profiles(adata)
        for line, context in enumerate(config.contexts):
            squares = []
            for s, condition in enumerate(part.conditions):
                rows = logs[(adata.obs["condition"] == condition) & (adata.obs["cell_type"] == context)]
                error = rows.var(axis=0, ddof=1) * (1 / len(rows) + 1 / 500)
                seen = part.profile[line, s] > 0.5  # genes of a few counts have no sound standard error
                squares.extend(((rows.mean(axis=0) - part.profile[line, s]) ** 2)[seen] / error[seen])
            assert 0.8 < np.mean(squares) < 1.2


def test_pathway_genes_shift_with_the_sign_of_the_truth(default):
    """Genes of one pathway alone, against genes of none: the softmax moves all genes by a common term."""
    truth = default.truth
    checked = 0
    for adata, part, config in pieces(default):
        logs = log_profiles(adata)
        member = truth.weight[:, part.panel] > 0  # (P, n)
        free = member.sum(axis=0) == 0
        is_target = np.isin(part.panel, truth.target_gene)
        for line, context in enumerate(config.contexts):
            here = adata.obs["cell_type"] == context
            control = logs[here & (adata.obs["condition"] == "control")].mean(axis=0)
            for s, condition in enumerate(part.conditions[1:], start=1):
                delta = logs[here & (adata.obs["condition"] == condition)].mean(axis=0) - control
                effect = (part.mean_u[line, s] - part.mean_u[line, 0])[truth.pathway_factor] * truth.loading
                for p in np.flatnonzero(np.abs(effect) > 0.6):
                    own = member[p] & (member.sum(axis=0) == 1) & ~is_target
                    shift = delta[own].mean() - delta[free & ~is_target].mean()
                    assert np.sign(shift) == np.sign(effect[p]), (config.name, condition, p)
                    checked += 1
    assert checked > 200


def test_targets_change_their_own_expression(default):
    for adata, part, config in pieces(default):
        for t in np.flatnonzero(part.design.any(axis=0)):
            s = int(np.flatnonzero((part.design[:, t] == 1) & (part.design.sum(axis=1) == 1))[0])
            g = list(adata.var_names).index(default.truth.targets[t])
            delta = part.profile[:, s, g] - part.profile[:, 0, g]
            assert np.all(delta > 0 if config.modality == "CRISPRa" else delta < 0)


@pytest.mark.parametrize("dispersion", [0.0, 0.5])
def test_count_noise(dispersion):
    """With every effect off, counts are Poisson or negative binomial around one mean."""
    off = dict.fromkeys(("own_effect", "activity_noise", "baseline_sd", "context_sd", "batch_sd"), 0.0)
    screen = ScreenConfig(name="flat", n_genes=50, n_singles=1, n_doubles=0, control_cells=3000, depth=400.0,
                          depth_sd=0.0)  # fmt: skip
    config = SimulationConfig(
        n_genes=60, loading_range=(0, 0), screens=(screen,), dispersion=dispersion, truth_cells=1, **off
    )
    counts = simulate(config).screens[0].X.toarray()
    assert abs(counts.mean() - 8) < 0.05
    assert abs(counts.var() / (8 + dispersion * 64) - 1) < 0.03


def test_written_files(tmp_path, small):
    out = tmp_path / "new" / "demo"
    spec = write_simulation(small, out)
    assert spec == out / "spec.yaml"
    assert {p.name for p in out.iterdir()} == {
        "up.h5ad", "down.h5ad", "pathways.gmt", "truth.npz", "truth.json", "spec.yaml"
    }  # fmt: skip
    assert [p.name for p in out.parent.iterdir()] == ["demo"]
    described = yaml.safe_load(spec.read_text(encoding="utf-8"))
    assert described["genes"] == {"reference": "none"}
    assert described["datasets"] == [
        {
            "name": name,
            "path": f"{name}.h5ad",
            "perturbation": {"column": "condition", "control": "control", "separator": "+"},
            "context": {"column": "cell_type"},
            "modality": modality,
            "batch": {"column": "batch"},
        }
        for name, modality in (("up", "CRISPRa"), ("down", "CRISPRi"))
    ]
    for adata, part, config in pieces(small):
        read = ad.read_h5ad(out / f"{config.name}.h5ad")
        np.testing.assert_array_equal(read.X.toarray(), adata.X.toarray())
        assert read.obs.equals(adata.obs)
        with np.load(out / "truth.npz", allow_pickle=False) as arrays:
            np.testing.assert_array_equal(arrays[f"{config.name}.u"], part.u)
            np.testing.assert_array_equal(arrays["graph"], small.truth.graph)
    assert read_gmt(out / "pathways.gmt") == small.sets
    lists = json.loads((out / "truth.json").read_text(encoding="utf-8"))
    assert lists["targets"] == small.truth.targets
    assert [screen["conditions"] for screen in lists["screens"]] == [
        p.conditions for p in small.truth.screens
    ]
    assert SimulationConfig.parse(lists["config"], "truth.json") == small.config


def test_an_empty_folder_is_filled(tmp_path):
    assert simulate_to(tmp_path, SimulationConfig(**SMALL)) == tmp_path / "spec.yaml"
    assert (tmp_path / "up.h5ad").exists()


def test_nothing_is_overwritten(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "simulate", lambda config: pytest.fail("simulated before looking"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine", encoding="utf-8")
    for out, found in [
        (tmp_path / "full", "a folder that is not empty"),
        (tmp_path / "full/notes.txt", "a file"),
    ]:
        with pytest.raises(UserError, match=f"{out}: expected a new or empty folder, found {found}; give"):
            simulate_to(out, SimulationConfig(**SMALL))
    assert (tmp_path / "full" / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, small):
    def full_disk(sets, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_gmt", full_disk)
    with pytest.raises(UserError, match=r"demo: cannot be written \(.*No space left.*\); give"):
        write_simulation(small, tmp_path / "demo")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"n_pathways": 2}, "'n_pathways': expected one pathway or more for each of 3 factors"),
        ({"genes_per_pathway": (10, 5)}, "'genes_per_pathway': expected a smallest and a largest size"),
        ({"genes_per_pathway": (5, 121)}, "'genes_per_pathway': expected a smallest"),
        ({"n_targets": 16}, "'n_targets': expected at most 15"),
        ({"n_genes": 60}, "'screens': up: expected n_singles <= n_targets and n_singles <= n_genes <= 60"),
        ({"n_targets": 3}, "'screens': up: expected n_singles <= n_targets"),
        ({"n_factors": 0}, "'n_factors': "),
        ({"shift_range": (2, 1)}, "'shift_range': expected a smallest and a largest value"),
        ({"screens": [{"name": "a", "n_genes": 9, "n_singles": 3, "n_doubles": 4}]}, "n_doubles up to 3"),
        ({"screens": [{"name": "a", "n_genes": 9, "n_singles": 3, "doubles": [[0, 3]]}]}, "different pairs"),
        ({"screens": [{"name": "a", "n_genes": 9, "n_singles": 3, "doubles": [[0, 0]]}]}, "different pairs"),
        (
            {"screens": [{"name": "a", "n_genes": 9, "n_singles": 3, "doubles": [[0, 1], [1, 0]]}]},
            "different",
        ),
        ({"screens": [{"name": "a", "n_genes": 9, "n_singles": 1, "n_doubles": 0}] * 2}, "'a' again"),
        (
            {
                "screens": [
                    {"name": "a", "n_genes": 9, "n_singles": 1, "n_doubles": 0, "contexts": ["L", "L"]}
                ]
            },
            "every context once",
        ),
        ({"screens": [{"name": "../a"}]}, "'screens.0.name'"),
        ({"screens": [{"name": "a", "modality": "drug"}]}, "'screens.0.modality'"),
        ({"colour": 1}, "unknown setting 'colour'"),
    ],
)
def test_impossible_configs(changes, problem):
    with pytest.raises(UserError) as error:
        SimulationConfig.parse({**SMALL, **changes}, "demo.yaml")
    assert str(error.value).startswith("demo.yaml: ")
    assert problem in str(error.value)


def test_smallest_world():
    """One factor, one pathway, one target, no doubles."""
    screen = ScreenConfig(
        name="one", n_genes=4, n_singles=1, n_doubles=0, control_cells=1, cells_per_condition=1, n_batches=1
    )
    config = SimulationConfig(
        n_genes=5, n_factors=1, n_pathways=1, genes_per_pathway=(2, 2), n_targets=1, screens=(screen,)
    )
    (adata,) = simulate(config).screens
    assert adata.shape == (2, 4)
