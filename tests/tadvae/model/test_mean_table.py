"""Many perturbations in several contexts at once: the answers of single questions, in one table."""

import itertools
import json

import anndata as ad
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cli.main import main
from tadvae.cells.ragged import Cells
from tadvae.model import combinations, mean_table, predict_many
from tadvae.model.combinations import Combinations, read_targets
from tadvae.model.conformal import Calibration, Errors
from tadvae.model.counts import Counts
from tadvae.model.ensemble import Ensemble
from tadvae.model.mean_table import MeanTable
from tadvae.model.predict_many import write_many
from tadvae.model.start import Start
from tadvae.model.tadvae import TADVAE
from tadvae.nn.network import TADVAEModule

ASKED = ["KLF1", "JUN+H2AFZ", "NOBODY", "ctrl", "JUN+NOBODY"]


@pytest.fixture(scope="module")
def ensemble(spelt_model):
    """Two models of other seeds, calibrated with invented errors."""
    torch.manual_seed(1)
    config, vocabulary = spelt_model.config, spelt_model.vocabulary
    module = TADVAEModule(config.model, config.loss, vocabulary)
    with torch.no_grad():
        module.decoder.gene.add_(torch.randn_like(module.decoder.gene))
    other = TADVAE(module, vocabulary, config, spelt_model.controls, spelt_model.effects)
    rng = np.random.default_rng(0)
    shape = (20, len(vocabulary.datasets[0].genes))
    errors = {"old": Errors(rng.normal(0, 0.1, shape), rng.uniform(0, 0.1, shape))}
    return Ensemble([spelt_model, other], Calibration.fit(errors, "single"))


def test_every_row_is_the_answer_of_a_single_question(spelt_model):
    table = spelt_model.predict_many(ASKED)
    assert table.obs["context"].tolist() == ["OLD"] * 6 + ["NEW"] * 6
    for context in ("OLD", "NEW"):
        part = table[table.obs["context"] == context]
        assert part.obs["perturbation"].tolist() == [
            "control", "KLF1", "H2AFZ+JUN", "NOBODY", "control", "JUN+NOBODY"
        ]  # fmt: skip
        known = part.obs["reason"] == ""
        assert known.tolist() == [True, True, True, False, True, False]
        assert part.obs["reason"].str.contains("'NOBODY': no prediction").sum() == 2
        assert np.isnan(part.X[~known]).all()
        for row, target in ((1, "KLF1"), (2, "JUN+H2AFZ")):
            one = spelt_model.predict(target, context=context)
            assert part.var["gene"].tolist() == one.var["gene"].tolist()
            expected = np.maximum(one.var["predicted_mean"], 0.0)
            np.testing.assert_allclose(part.X[row], expected, rtol=1e-3, atol=1e-4)
            np.testing.assert_allclose(part.X[0], one.var["control_mean"], rtol=1e-5)
    assert np.nanmin(table.X) >= 0.0
    assert table.var_names.is_unique


def test_no_logarithm_is_below_zero(spelt_model, monkeypatch):
    """The network can predict one; the single question keeps it, as cells vary around their mean."""
    found = spelt_model.predict_means(["KLF1"], context="OLD").to_numpy()
    monkeypatch.setattr(
        spelt_model.predictor, "means_from", lambda *_: lambda asked: np.repeat(found - 3.0, len(asked), 0)
    )
    table = spelt_model.predict_many(["KLF1"], context="OLD")
    assert (found - 3.0).min() < 0.0
    np.testing.assert_array_equal(table.X[1], np.maximum(found[0] - 3.0, 0.0))


@pytest.mark.parametrize("size", [1, 3, 1_000])
def test_parquet_holds_the_same_and_parts_do_not_matter(spelt_model, tmp_path, monkeypatch, size):
    expected = spelt_model.predict_many("singles+pairs")
    monkeypatch.setattr(mean_table, "PER_PART", size)
    table = MeanTable(spelt_model, Combinations((), True, True))
    largest = max(len(part.questions) for part in table.parts())
    assert largest <= size
    written = write_many(table, str(tmp_path / "all.parquet"))
    assert written.n == len(expected) - 2
    read = pq.read_table(tmp_path / "all.parquet")
    about = json.loads(read.schema.metadata[b"tadvae"])
    assert about["gene"] == expected.var["gene"].tolist()
    assert about["genes"] == expected.var_names.tolist()
    frame = read.to_pandas()
    for column in ("perturbation", "context", "dataset"):
        assert frame[column].tolist() == expected.obs[column].tolist()
    np.testing.assert_allclose(np.stack(frame["mean"]), expected.X, rtol=1e-4, atol=1e-5)
    assert frame["reason"].isna().all()


@pytest.mark.parametrize("tile", [1, 2, 32])
@pytest.mark.parametrize("listed", [(), ("KLF1",), ("JUN+H2AFZ", "g1", "H2AZ1+JUN", "NOBODY")])
@pytest.mark.parametrize(("singles", "pairs"), [(True, False), (False, True), (True, True)])
def test_all_singles_and_pairs_once_each(spelt_model, monkeypatch, tile, listed, singles, pairs):
    monkeypatch.setattr(combinations, "TILE", tile)
    vocabulary = spelt_model.vocabulary
    asked = Combinations(listed, singles, pairs).at(0, vocabulary, spelt_model.unknown)
    found = list(asked)
    assert len(found) == len(asked)
    keys = [frozenset(t for t, _ in q.pairs) for q in found if q.pairs is not None]
    assert len(set(keys)) == len(keys)
    every = range(len(vocabulary.targets))  # both screens perturb in the same way
    expected = {frozenset([i]) for i in every} if singles else set()
    expected |= {frozenset(p) for p in itertools.combinations(every, 2)} if pairs else set()
    known = [name for name in listed if name != "NOBODY"]
    expected |= {
        frozenset(vocabulary.target_index[p.target] for p in vocabulary.lookup.find(name, 0).parts)
        for name in known
        if all(p.target for p in vocabulary.lookup.find(name, 0).parts)
    }
    assert expected <= set(keys)
    assert len(set(keys) - expected) <= len(known)
    labels = [q.label for q in found]
    assert [label.split("+") for label in labels if "JQ1" not in label] == [
        sorted(label.split("+")) for label in labels if "JQ1" not in label
    ]


def test_an_ensemble_gives_the_intervals_of_single_questions(ensemble):
    table = ensemble.predict_many(["KLF1", "JUN"])
    assert set(table.layers) == {"seed_spread", "low", "high"}
    assert table.uns["tadvae"]["interval_level"] == pytest.approx(0.9)
    assert table.uns["tadvae"]["no_interval"][0] == ""
    assert "no calibration" in table.uns["tadvae"]["no_interval"][1]
    old = table[table.obs["context"] == "OLD"]
    for row, target in ((1, "KLF1"), (2, "JUN")):
        one = ensemble.predict(target, context="OLD")
        for name, expected in (
            ("low", one.varm["interval"][:, 0]),
            ("high", one.varm["interval"][:, 1]),
            ("seed_spread", one.var["seed_spread"].to_numpy()),
        ):
            np.testing.assert_allclose(
                old.layers[name][row], np.maximum(expected, 0.0), rtol=2e-3, atol=2e-4, err_msg=name
            )
    new = table[table.obs["context"] == "NEW"]
    assert np.isnan(new.layers["low"]).all()
    assert not np.isnan(new.layers["seed_spread"]).any()


def test_one_model_gives_standard_errors_by_their_equation(spelt_model):
    """Regression, its difference from what is predicted, and control cells that are not kept; float64."""
    table = spelt_model.predict_many(["JUN", "JUN+H2AFZ", "NOBODY"], context="OLD")
    assert list(table.layers) == ["se"]
    assert "no_se" not in table.uns["tadvae"]
    row = next(i for i, each in enumerate(spelt_model.vocabulary.contexts) if each.name == "OLD")
    entry, effects, kept = (
        spelt_model.vocabulary.contexts[row],
        spelt_model.effects,
        spelt_model.controls[row],
    )
    genes = spelt_model.vocabulary.datasets[entry.dataset].genes
    variance, n = effects.observed.variance[entry.dataset], effects.n_controls[row]
    (question,) = Combinations(("JUN",)).at(entry.dataset, spelt_model.vocabulary, spelt_model.unknown)
    pairs = question.pairs
    at = (entry.dataset, row, [pairs], genes)
    before = kept.dense(genes).astype(np.float64).mean(axis=0)
    predicted = spelt_model.means_at(row).means([pairs]).mean[0]
    difference = predicted - before - effects.predict(*at, entry.profile)[0]
    expected = effects.standard_errors(*at)[0] ** 2 + difference**2
    expected += variance * (1 / len(kept) - 1 / n)
    assert np.isfinite(expected).all()
    assert np.abs(difference).max() > 1e-3
    np.testing.assert_allclose(table.layers["se"][1], np.sqrt(expected), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(table.layers["se"][0], np.sqrt(variance / len(kept)), rtol=1e-5)
    assert np.isnan(table.layers["se"][3]).all()
    one = spelt_model.predict("JUN", context="OLD")
    np.testing.assert_allclose(one.var["se"], table.layers["se"][1], rtol=1e-4, atol=1e-6)
    assert "no_se" not in one.uns["tadvae"]
    assert "se" not in spelt_model.predict("JUN", context="OLD", units="counts").var
    seeds = Ensemble([spelt_model, spelt_model])
    assert set(seeds.predict_many(["JUN"], context="OLD").layers) == {"seed_spread", "se"}
    of_two = seeds.predict_many(["JUN"], context="OLD").layers["se"]
    np.testing.assert_allclose(of_two, table.layers["se"][:2], rtol=1e-4)
    np.testing.assert_array_equal(seeds.predict("JUN", context="OLD").var["se"], of_two[1])
    assert "se" not in seeds.predict("JUN", context="OLD", units="counts").var
    counts = spelt_model.predict_many(["JUN"], context="OLD", units="counts")
    rises = counts.X[1] > 0.0
    assert (counts.layers["se"][1][rises] > 0.0).all()


def test_why_there_is_no_standard_error(spelt_model, spelt_folder, monkeypatch):
    own = ad.read_h5ad(f"{spelt_folder}/new.h5ad")[:12].copy()
    given = spelt_model.predict_many(["KLF1"], context="HERE", dataset="old", controls=own)
    assert list(given.layers) == []
    assert "given control cells" in given.uns["tadvae"]["no_se"][0]
    one = spelt_model.predict("KLF1", context="HERE", dataset="old", controls=own)
    assert "given control cells" in one.uns["tadvae"]["no_se"]
    assert "se" not in one.var
    several = Ensemble([spelt_model, spelt_model]).predict(
        "KLF1", context="HERE", dataset="old", controls=own
    )
    assert several.uns["tadvae"]["no_se"] == one.uns["tadvae"]["no_se"]
    for part, word in (("observed", "of a version"), (None, "effects.weight=0")):
        with monkeypatch.context() as patch:
            if part:
                patch.setattr(spelt_model.effects, part, None)
            else:
                patch.setattr(spelt_model, "effects", None)
            table = spelt_model.predict_many(["KLF1"], context="OLD")
        assert word in table.uns["tadvae"]["no_se"][0]


@pytest.mark.parametrize("asked_of", ["spelt_model", "ensemble"])
def test_counts(asked_of, request):
    """No change gives the mean counts of the control cells; cells have their own library sizes."""
    model = request.getfixturevalue(asked_of)
    first = model.members[0] if asked_of == "ensemble" else model
    kept = first.controls[0]
    cells = model.predict("ctrl", context="OLD", units="counts")
    genes = model.vocabulary.datasets[0].genes
    expected = np.expm1(kept.dense(genes).astype(np.float64)) * kept.total_counts[:, None] / 1e4
    np.testing.assert_allclose(cells.X, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(cells.X, np.rint(cells.X), atol=2e-3)  # they were whole
    table = model.predict_many(["KLF1"], context="OLD", units="counts")
    np.testing.assert_allclose(table.X[0], expected.mean(axis=0), rtol=1e-3)
    assert table.uns["tadvae"]["values"] == "counts"
    logs = model.predict_many(["KLF1"], context="OLD")
    raised = (logs.X[1] > logs.X[0] + 1e-3) & (logs.X[1] > 0)
    assert (table.X[1][raised] > table.X[0][raised]).all()
    assert table.X.min() >= 0.0
    if asked_of == "ensemble":
        one = model.predict("KLF1", context="OLD", units="counts")
        low, high = one.varm["interval"].T
        np.testing.assert_allclose(table.layers["low"][1], low, rtol=5e-3, atol=5e-3)
        assert (low <= high).all()
        assert low.min() >= 0.0


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 4), st.booleans())
def test_counts_of_changes_are_those_of_the_changed_cells(small_vocabulary, seed, n, m, known):
    """Against the definition: every cell is changed, brought back to counts, and none is below zero."""
    rng = np.random.default_rng(seed)
    genes = small_vocabulary.datasets[0].genes
    dense = rng.gamma(1.0, 1.0, (n, len(genes))).astype(np.float32) * (rng.random((n, len(genes))) < 0.6)
    row, column = np.nonzero(dense)
    offsets = np.concatenate([[0], np.cumsum((dense > 0).sum(axis=1))])
    depth = rng.uniform(1e3, 2e4, n) if known else np.full(n, np.nan)
    cells = Cells(genes[column], dense[row, column], offsets.astype(np.int64), depth)
    start = Start(0, "K562", 0, genes, [], cells, dense.mean(0), "", [], depth, "cp10k")
    changes = rng.normal(0, 1.5, (m, len(genes)))
    found = Counts(start, small_vocabulary).of_changes(changes)
    per_cell = np.where(np.isnan(depth), 1.0, depth / 1e4)
    for i in range(m):
        values = np.expm1(dense.astype(np.float64) + changes[i]) * per_cell[:, None]
        np.testing.assert_allclose(found[i], np.maximum(values, 0.0).mean(axis=0), rtol=1e-9, atol=1e-12)


def test_own_control_cells(spelt_model, spelt_folder):
    own = ad.read_h5ad(f"{spelt_folder}/new.h5ad")[:12].copy()
    table = spelt_model.predict_many(["KLF1"], context="HERE", dataset="old", controls=own)
    one = spelt_model.predict("KLF1", context="HERE", dataset="old", controls=own)
    assert table.obs["context"].tolist() == ["HERE", "HERE"]
    assert table.var_names.tolist() == one.var_names.tolist()
    np.testing.assert_allclose(table.X[1], np.maximum(one.var["predicted_mean"], 0), rtol=1e-3, atol=1e-4)
    counts = spelt_model.predict_many("singles", dataset="old", controls=own, units="counts")
    at = own.var_names.get_indexer(counts.var_names)
    np.testing.assert_allclose(counts.X[0], own.X[:, at].mean(axis=0), rtol=1e-3)


def test_what_cannot_be_asked(spelt_model, small_vocabulary, tmp_path, refused, monkeypatch):
    many = spelt_model.predict_many
    assert "context 'MARS' is not in training (known: NEW, OLD)" in refused(many, ["KLF1"], context="MARS")
    assert "not in dataset old" in refused(many, ["KLF1"], context="NEW", dataset="old")
    assert "dataset 'x' was not in training" in refused(many, ["KLF1"], dataset="x")
    assert "the list is empty" in refused(many, [])
    assert "expected a list" in refused(many, "everything")
    assert "expected 'log1p' or 'counts'" in refused(many, ["KLF1"], units="tpm")
    monkeypatch.setattr(predict_many, "MOST_VALUES", 10)
    assert "name ends in .parquet" in refused(many, "pairs")
    table = MeanTable(spelt_model, Combinations((), True))
    assert "too many for one AnnData" in refused(write_many, table, str(tmp_path / "a.h5ad"))
    assert "ends in .h5ad or .parquet" in refused(write_many, table, str(tmp_path / "a.csv"))
    monkeypatch.setattr(mean_table.MeanTable, "labels", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_many(table, str(tmp_path / "a.parquet"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("method", "words"), [("tpm", "lengths of transcripts"), ("none", "scale is not known")]
)
def test_no_counts_without_a_scale(small_vocabulary, refused, method, words):
    start = Start(0, "K", 0, np.arange(2), [], Cells.concat([]), np.zeros(2), "", [], np.zeros(0), method)
    assert words in refused(Counts, start, small_vocabulary)


def test_a_file_of_targets(tmp_path, refused):
    (tmp_path / "t.txt").write_text("﻿KLF1\n\n  JUN+H2AFZ \n")
    assert read_targets(str(tmp_path / "t.txt")) == ("KLF1", "JUN+H2AFZ")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "no such file" in refused(read_targets, str(tmp_path / "none.txt"))
    assert "names no perturbation" in refused(read_targets, str(tmp_path / "empty.txt"))
    assert "not a text file" in refused(read_targets, str(tmp_path / "binary"))


def test_the_command(spelt_model, tmp_path, capsys):
    spelt_model.save_pretrained(tmp_path / "model")
    (tmp_path / "targets.txt").write_text("KLF1\nNOBODY\n")
    before = ["predict", str(tmp_path / "model")]

    def run(*words):
        with pytest.raises(SystemExit) as ended:
            main([*before, *words])
        said = capsys.readouterr()
        return ended.value.code or 0, said.out + said.err

    code, said = run(
        "--targets", str(tmp_path / "targets.txt"), "--all-pairs", "--out", str(tmp_path / "a.h5ad")
    )
    assert code == 0, said
    assert "2 without an answer" in said
    assert "2 × target 'NOBODY': no prediction" in " ".join(said.split())
    found = ad.read_h5ad(tmp_path / "a.h5ad")
    assert found.obs["reason"].astype(bool).sum() == 2
    code, said = run(
        "--target", "KLF1", "--context", "OLD", "--as", "counts", "--out", str(tmp_path / "b.parquet")
    )
    assert code == 0, said
    assert pq.read_table(tmp_path / "b.parquet")["perturbation"].to_pylist() == ["control", "KLF1"]
    code, said = run("--target", "KLF1", "--context", "OLD", "--out", str(tmp_path / "cells.h5ad"))
    assert code == 0, said
    assert "started_from" in ad.read_h5ad(tmp_path / "cells.h5ad").uns["tadvae"]
    for words, sentence in (
        (["--out", str(tmp_path / "c.h5ad")], "predict: no perturbation"),
        (["--all-singles", "--out", str(tmp_path / "a.h5ad")], "already exists"),
        (["--all-singles", "--out", str(tmp_path / "c.csv")], "ends in .h5ad or .parquet"),
    ):
        code, said = run(*words)
        assert (code, said.count("\n")) == (2, 1), said
        assert sentence in said
    assert not (tmp_path / "c.h5ad").exists()


def test_a_table_without_standard_errors_asks_for_none(spelt_model, monkeypatch):
    """A ranking reads the means alone."""
    monkeypatch.setattr(type(spelt_model.effects), "standard_errors", None)
    table = MeanTable(spelt_model, Combinations((), True), errors=False)
    assert table.layers == ["mean"]
    assert sum(len(part.questions) for part in table.parts()) == len(table)
