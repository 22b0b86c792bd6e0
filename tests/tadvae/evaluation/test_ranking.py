"""Ranking of perturbations towards a wanted state: scores, errors, pathways, the table and the page."""

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cli.main import main
from tadvae.evaluation import ranking
from tadvae.evaluation.distances import energy_distance
from tadvae.evaluation.ranking import Ranking, Towards, carrying, rank_towards
from tadvae.model.ensemble import Ensemble
from tadvae.model.tadvae import TADVAE
from tadvae.nn.network import TADVAEModule
from tadvae.report.ranking_page import answer, ranking_page


@pytest.fixture(scope="module")
def model(spelt_model):
    return spelt_model


@pytest.fixture(scope="module")
def state(model):
    """Cells around the mean profile under a perturbation, as the model predicts it."""
    cells = model.predict("FOS", context="OLD")
    values = cells.X.mean(axis=0) + np.random.default_rng(0).normal(0, 0.01, cells.shape)
    return ad.AnnData(np.maximum(values, 0.0).astype(np.float32), var=pd.DataFrame(index=cells.var_names))


def towards_of(seed, n, m, genes=4):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0, 1, (n, genes)), rng.normal(0.7, 1, (m, genes))
    return rng, Towards(x, y, abs(energy_distance(x, y, unbiased=False)))


def energy_by_definition(x, y, change, distance):
    before = np.mean([np.linalg.norm(a - b) for a in x for b in y])
    after = np.mean([np.linalg.norm(a + change - b) for a in x for b in y])
    return 2 * (before - after) / distance


@given(st.integers(0, 2**32 - 1), st.integers(2, 5), st.integers(2, 6), st.sampled_from([1, 2**22]))
def test_scores_are_those_of_their_definition(seed, n, m, at_once):
    rng, towards = towards_of(seed, n, m)
    changes = np.concatenate([rng.normal(0, 1, (3, 4)), np.zeros((1, 4))])
    before, ranking.DISTANCES = ranking.DISTANCES, at_once
    try:
        energy, cosine = towards.energy(changes), towards.cosine(changes)
    finally:
        ranking.DISTANCES = before
    wanted = towards.y.mean(axis=0) - towards.x.mean(axis=0)
    for i, change in enumerate(changes[:3]):
        expected = energy_by_definition(towards.x, towards.y, change, towards.distance)
        assert energy[i] == pytest.approx(expected, rel=1e-9, abs=1e-9)
        expected = change @ wanted / np.linalg.norm(change) / np.linalg.norm(wanted)
        assert cosine[i] == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert energy[3] == pytest.approx(0.0, abs=1e-9)
    assert cosine[3] == 0.0


def test_the_energy_score_is_what_the_change_does_to_the_energy_distance():
    rng, towards = towards_of(1, 6, 9)
    for change in rng.normal(0, 1, (4, 4)):
        after = energy_distance(towards.x + change, towards.y, unbiased=False)
        expected = 1.0 - after / towards.distance
        assert towards.energy(change[None])[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("score", ["energy", "cosine"])
def test_drawing_cells_again_is_scoring_the_drawn_cells(score):
    """Weights of cells are the numbers of times that they are drawn."""
    rng, towards = towards_of(2, 5, 7)
    changes = rng.normal(0, 1, (3, 4))
    found = towards.resampled(score, changes, 6, seed=4)
    again = np.random.default_rng(4)
    times = [again.multinomial(k, np.full(k, 1 / k), 6) for k in (5, 7)]
    for b in range(6):
        x, y = (np.repeat(c, t[b], axis=0) for c, t in zip((towards.x, towards.y), times, strict=True))
        expected = Towards(x, y, towards.distance).scores(score, changes)
        np.testing.assert_allclose(found[:, b], expected, rtol=1e-9, atol=1e-12)


def test_the_standard_error_is_that_of_new_cells():
    """Drawn from a population, many times."""
    change, estimates, errors = np.full((1, 3), 0.5), [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        towards = Towards(rng.normal(0, 1, (40, 3)), rng.normal(1, 1, (50, 3)), 1.0)
        estimates.append(towards.energy(change)[0])
        errors.append(towards.resampled("energy", change, 60, seed)[0].std(ddof=1))
    assert np.mean(errors) == pytest.approx(np.std(estimates, ddof=1), rel=0.15)


@pytest.mark.parametrize("score", ["energy", "cosine"])
def test_the_perturbation_behind_the_state_is_first(model, state, score):
    found = rank_towards(model, state, "singles+pairs", context="OLD", values="log1p", score=score)
    first = found.table.set_index("perturbation").loc["FOS"]
    assert first["cosine"] == pytest.approx(1.0, abs=0.02)
    if score == "cosine":
        assert first["rank"] == 1
    assert first["low"] < first["score"] <= first["high"]
    if score == "cosine":
        assert found.table[["low", "high"]].abs().max(axis=None) <= 1.0
    if score == "energy":
        names = model.predict("FOS", context="OLD").var_names
        x = model.controls[0].dense(model.vocabulary.datasets[0].genes).astype(np.float64)
        y = state[:, names].X.astype(np.float64)
        change = model.predict_means(["FOS"], context="OLD").to_numpy()[0] - x.mean(axis=0)
        expected = energy_by_definition(x, y, change, energy_distance(x, y))
        assert first["score"] == pytest.approx(expected, rel=1e-4)
    assert found.n_asked == len(found.table)
    assert (found.table["score"].diff().dropna() <= 1e-9).all()
    assert (found.table["se"] >= 0).all()
    assert found.table["rank"].tolist() == list(range(1, len(found.table) + 1))
    top = rank_towards(model, state, "singles+pairs", context="OLD", values="log1p", score=score, top=3)
    assert top.table["perturbation"].tolist() == found.table["perturbation"].tolist()[:3]
    assert top.n_asked == found.n_asked


def test_the_disagreement_of_an_ensemble_is_in_the_errors(model, state):
    torch.manual_seed(1)
    module = TADVAEModule(model.config.model, model.config.loss, model.vocabulary)
    with torch.no_grad():
        module.decoder.gene.add_(torch.randn_like(module.decoder.gene))
    other = TADVAE(module, model.vocabulary, model.config, model.controls, model.effects)
    options = {"context": "OLD", "values": "log1p", "score": "cosine"}
    found = rank_towards(Ensemble([model, other]), state, ["KLF1"], **options)
    same = rank_towards(Ensemble([model, model]), state, ["KLF1"], **options)
    alone = rank_towards(model, state, ["KLF1"], **options)
    assert found.members == 2
    assert same.table["se"][0] == pytest.approx(alone.table["se"][0], rel=1e-6)
    each = [rank_towards(m, state, ["KLF1"], **options).table["score"][0] for m in (model, other)]
    assert found.table["se"][0] ** 2 >= np.var(each, ddof=1) / 2 * (1 - 1e-6)


def test_own_cells_and_those_without_an_answer(model, state, spelt_folder):
    own = ad.read_h5ad(f"{spelt_folder}/old.h5ad")
    controls = own[own.obs["condition"] == "ctrl"].copy()
    jun = own[own.obs["condition"] == "g1"].copy()
    found = rank_towards(model, jun, ["KLF1", "g1", "NOBODY"], dataset="old", controls=controls)
    assert found.context == "given"
    assert found.n_asked == 2
    assert sum(found.reasons.values()) == 1
    assert (found.n_controls, found.n_state, found.n_genes) == (12, 12, 10)


@given(st.integers(0, 2**32 - 1))
def test_pathways_that_carry_a_score(small_vocabulary, seed):
    """Against loops over pathways."""
    rng = np.random.default_rng(seed)
    genes = np.sort(rng.choice(12, 7, replace=False))
    change, wanted = rng.normal(size=(2, 7))
    membership = small_vocabulary.membership
    found = carrying(change, wanted, genes, membership)
    product = change * wanted
    for p in range(membership.n_pathways):
        members = set(membership.gene[membership.pathway == p].tolist())
        inside = [i for i, gene in enumerate(genes.tolist()) if gene in members]
        assert found.share[p] == pytest.approx(product[inside].sum() / product.sum(), rel=1e-9, abs=1e-9)
        if len(inside) < 2:
            assert np.isnan(found.z[p])
        else:
            se = product.std() / np.sqrt(len(inside))
            expected = (product[inside].mean() - product.mean()) / se
            assert found.z[p] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_what_cannot_be_ranked(model, state, refused):
    def sentence(given=state, targets="singles", **options):
        return refused(
            rank_towards, model, given, targets, **({"context": "OLD", "values": "log1p"} | options)
        )

    assert "name one context" in sentence(context=None)
    assert "at least 5" in sentence(state[:3].copy())
    assert "expected 'energy' or 'cosine'" in sentence(score="mmd")
    assert "top=0" in sentence(top=0)
    controls = model.predict("ctrl", context="OLD")
    same = ad.AnnData(controls.X, var=pd.DataFrame(index=controls.var_names))
    assert "cannot be told from the control cells" in sentence(same)


def test_the_answer_in_a_sentence():
    table = pd.DataFrame(
        {
            "perturbation": ["A", "B", "C"], "score": [0.5, 0.4, 0.1], "low": [0.4, 0.3, 0.05],
            "high": [0.6, 0.5, 0.15],
        }
    )  # fmt: skip
    found = Ranking(table, "energy", 1_200, "K562", "screen", 5, 6, 7, 0.3, 1)
    said = answer(found, "memory")
    assert said == (
        "Of 1,200 perturbations, A moves control cells of K562 (screen) furthest towards memory, with the "
        "energy score 50% [40%, 60%]; 1 other has an interval that overlaps with its own."
    )
    unsure = Ranking(table.assign(low=-0.1), "cosine", 3, "K562", "screen", 5, 6, 7, 0.3, 1)
    assert answer(unsure, "memory").startswith("No perturbation certainly moves")
    assert "[-0.10, 0.60]" in answer(unsure, "memory")
    empty = Ranking(table[:0], "energy", 0, "K562", "screen", 5, 6, 7, 0.3, 1)
    assert "could be predicted" in answer(empty, "memory")
    assert "<svg" not in ranking_page(empty, "memory")


def test_the_command_and_its_page(model, spelt_folder, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    own = ad.read_h5ad(f"{spelt_folder}/old.h5ad")
    own.obs["state"] = np.where(own.obs["condition"] == "g1", "<b>wanted", "other")
    own.write_h5ad(tmp_path / "cells.h5ad")
    own[own.obs["condition"] == "g1"].write_h5ad(tmp_path / "state.h5ad")

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main(["rank", str(tmp_path / "model"), *words])
        said = capsys.readouterr()
        return ended.value.code or 0, said.out + said.err

    state, cells = str(tmp_path / "state.h5ad"), ["--cells", str(tmp_path / "cells.h5ad")]
    out = ["--out", str(tmp_path / "a.csv"), "--page", str(tmp_path / "a.html")]
    code, said = run("--towards", "state=<b>wanted", *cells, "--context", "OLD", "--pairs", *out)
    assert code == 0, said
    table = pd.read_csv(tmp_path / "a.csv")
    n = len(model.vocabulary.targets)  # both screens perturb in the same way
    assert len(table) == n * (n + 1) // 2
    page = (tmp_path / "a.html").read_text()
    assert "<b>" not in page
    assert "state=&lt;b&gt;wanted" in page
    assert re.search(rf'<p class="answer">(Of {len(table)} perturbations|No perturbation certainly)', page)
    assert page.count("<tr") == len(table) + 1
    assert "http" not in page.replace("http://www.w3.org", "")
    code, said = run("--towards", state, "--context", "OLD", "--out", str(tmp_path / "b.parquet"))
    assert code == 0, said
    b = pd.read_parquet(tmp_path / "b.parquet")
    assert len(b) == n
    assert set(b["perturbation"]) < set(table["perturbation"])
    code, said = run(
        "--towards", "state=<b>wanted", "--from", "condition=ctrl", *cells, "--dataset", "old", "--out",
        str(tmp_path / "c.csv"),
    )  # fmt: skip
    assert code == 0, said
    kept = sorted(each.name for each in tmp_path.iterdir())
    new = ["--out", str(tmp_path / "new.csv"), "--context", "OLD"]
    for words, sentence in (
        (["--towards", "x=1", *new], "give the file with --cells"),
        (["--towards", "nothing.h5ad", *new], "no such file"),
        (["--towards", "x=1", *cells, *new], "no column 'x' in obs"),
        (["--towards", "state=none", *cells, *new], "no cell has the state 'none'"),
        (["--towards", state, "--context", "OLD", *out], "already exists"),
        (["--towards", state, "--context", "OLD", "--out", str(tmp_path / "a.txt")], ".csv or .parquet"),
        (["--towards", state, *new, "--targets", "t", "--pairs"], "leave out --pairs"),
        (["--towards", state, *new, "--from", "a=b", "--controls", state], "both name"),
    ):
        code, said = run(*words)
        assert (code, said.count("\n")) == (2, 1), said
        assert sentence in said
    assert sorted(each.name for each in tmp_path.iterdir()) == kept
