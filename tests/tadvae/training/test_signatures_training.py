"""Signatures through training, evaluation and predictions: signed effects from a control of zeros."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from local_conversion import convert_locally

from pipelines.inspect import as_tables, describe
from tadvae.base.filesystem import Location
from tadvae.data.splits import TEST, split_groups
from tadvae.evaluation.evaluate import evaluate
from tadvae.model.card import model_card
from tadvae.model.controls import pack_controls, unpack_controls
from tadvae.nn.strategies.base import STRATEGIES
from tadvae.settings.experiment import ExperimentConfig
from tadvae.training.fit import fit
from tadvae.training.prepare import prepare_training
from tadvae.training.validation import Validator

N_DRUGS, N_GENES, TYPES = 12, 20, ("b", "t")
TINY = [
    "model.pathway={d_embed: 8, n_heads: 2}",
    "model.causal={n_factors: 2, hidden: 6}",
    "model.decoder={d_gene: 4, hidden: 6}",
    "pathways.min_measured=3",
    "train={epochs: 2, learning_rate: 0.01}",
    "split.kind=single",
    "split.datasets=[t]",
]


def effects():
    """Effects of every drug in every type: half shared by the types, about zero on average."""
    rng = np.random.default_rng(11)
    shared = rng.normal(0, 1, (N_DRUGS, N_GENES))
    return {name: (shared + rng.normal(0, 0.3, shared.shape)).astype(np.float32) for name in TYPES}


def write(folder, kind, constant=0.0, unit=1.0):
    """One file and one dataset per type; as profiles: a constant added, and a control row of it.

    ``unit``: factor of the effects of the last type.
    """
    datasets = []
    for name, values in effects().items():
        values = values * np.float32(unit if name == TYPES[-1] else 1.0)
        drugs = [f"drug {i}" for i in range(N_DRUGS)]
        if kind == "profiles":
            values, drugs = np.vstack([np.zeros(N_GENES, np.float32), values]) + constant, ["control", *drugs]
        obs = pd.DataFrame({"drug": drugs}, index=[f"{name}{i}" for i in range(len(drugs))])
        var = pd.DataFrame(index=[f"G{g}" for g in range(N_GENES)])
        ad.AnnData(values.astype(np.float32), obs=obs, var=var).write_h5ad(folder / f"{name}.h5ad")
        dataset = {"name": name, "path": f"{name}.h5ad", "kind": kind, "modality": "drug"}
        dataset |= {"context": {"value": name}, "perturbation": {"column": "drug"}}
        if kind == "profiles":
            dataset |= {"values": "log1p"}
            dataset["perturbation"]["control"] = "control"
        datasets.append(dataset)
    (folder / "spec.yaml").write_text(yaml.safe_dump({"datasets": datasets, "genes": {"reference": "none"}}))
    sets = [f"P{i}\t\t" + "\t".join(f"G{g}" for g in range(5 * i, 5 * i + 8)) for i in range(3)]
    (folder / "sets.gmt").write_text("\n".join(sets) + "\n")
    return convert_locally(folder / "spec.yaml", Location.of(folder / "store"))


def config(folder, *settings):
    return ExperimentConfig.load(None, [f"pathways.file={folder / 'sets.gmt'}", *TINY, *settings])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("signatures")


@pytest.fixture(scope="module")
def stored(folder):
    return write(folder, "signatures")


@pytest.fixture(scope="module")
def trained(stored, folder):
    return fit(stored, config(folder))


def test_the_regression_is_that_of_the_signed_effects(trained, tmp_path):
    """As of profiles that hold the same effects, which are signed only as differences from their control."""
    profiles = write(tmp_path, "profiles", constant=16.0)
    other = prepare_training(profiles, config(tmp_path))
    own, groups = trained
    asked = [[(t, 0)] for t in range(len(own.vocabulary.targets))]
    genes = own.vocabulary.datasets[1].genes
    for dataset, row in ((0, 0), (1, 1)):
        expected = other.effects.predict(dataset, row, asked, genes)
        found = own.effects.predict(dataset, row, asked, genes)
        np.testing.assert_allclose(found, expected, rtol=0.01, atol=0.01)
    assert found.min() < -0.5
    held = set(groups.loc[groups["part"] == TEST, "dataset_name"])
    assert held == {"t"}


def test_other_units_are_noted(stored, folder, tmp_path, caplog):
    prepare_training(stored, config(folder))
    assert "as large as" not in caplog.text
    prepare_training(write(tmp_path, "signatures", unit=10.0), config(tmp_path))
    assert "the effects of dataset 't' are 9.9" in caplog.text
    assert "times as large as those of dataset 'b'" in caplog.text


def test_scores_are_of_the_effects(stored, trained):
    model, groups = trained
    scores = evaluate(stored, groups, model)
    assert any("signatures only" in note for note in scores.notes)
    table = scores.table.pivot(index=["perturbation", "method"], columns="metric", values="value")
    truth = dict(zip([f"drug {i}" for i in range(N_DRUGS)], effects()["t"].astype(np.float64), strict=True))
    for name in {drug for drug, _ in table.index}:
        row = table.loc[name, "no_change"]
        assert row["l2"] == pytest.approx(np.linalg.norm(truth[name]), rel=1e-5)
        assert row["cosine_logfc"] == row["pearson_delta"] == 0.0
        means = model.predict_means([name], context="t")[[f"G{g}" for g in range(N_GENES)]]
        (pred,) = means.to_numpy(np.float64)
        own = table.loc[name, "tadvae"]
        assert own["pearson_delta"] == pytest.approx(np.corrcoef(pred, truth[name])[0, 1], abs=1e-4)
        cosine = pred @ truth[name] / np.linalg.norm(pred) / np.linalg.norm(truth[name])
        assert own["cosine_logfc"] == pytest.approx(cosine, abs=1e-4)
    mean = table["pearson_delta"].groupby("method").mean()
    assert mean["tadvae"] > mean["mean"] + 0.3  # known from the other type, signs and all


def test_predictions_are_signed_effects(trained):
    model, _ = trained
    found = model.predict("drug 3", context="t")
    assert found.shape == (1, N_GENES)
    about = found.uns["tadvae"]
    expected = {"values": "effects", "started_from": "no response", "normalisation": "none", "dataset": "t"}
    assert about.items() >= expected.items()
    assert found.obs_names.tolist() == ["effect"]
    assert (found.var["control_mean"] == 0).all()
    assert found.X.min() < -0.2
    means = model.predict_means(["drug 3", "drug 3+drug 4"], context="t")
    np.testing.assert_allclose(means.loc["drug 3"], found.var["predicted_mean"], atol=1e-5)
    assert means.min(axis=None) < -0.2


def test_tables_of_effects_are_signed_and_in_one_unit(trained, refused):
    """Nothing is cut off at zero, and effects are no counts."""
    model, _ = trained
    means = model.predict_means(["drug 3"], context="t")
    table = model.predict_many(["drug 3"], context="t")
    np.testing.assert_allclose(table.X, [np.zeros(N_GENES), means.iloc[0]], atol=1e-5)
    assert table.uns["tadvae"]["values"] == "effects"
    for call in (model.predict, lambda name, **options: model.predict_many([name], **options)):
        assert "holds signatures" in refused(call, "drug 3", context="t", units="counts")


def test_validation_takes_no_logarithm_of_effects(stored, trained, folder):
    model, settings = trained[0], config(folder, "validation={every: 1, kind: single}")
    groups = split_groups(stored, settings.split, settings.validation)
    scores = Validator(stored, groups, model.vocabulary, settings, model.effects).score(model.module)
    assert scores["val_pearson_delta"] > 0.5
    assert scores["val_cosine_logfc"] == pytest.approx(scores["val_pearson_delta"], abs=0.1)


def test_training_is_reproducible(stored, trained):
    again, _ = fit(stored, trained[0].config)
    for name, weights in trained[0].module.state_dict().items():
        np.testing.assert_array_equal(again.module.state_dict()[name], weights, err_msg=name)


@pytest.mark.parametrize("encoder", ["none", "full", "inducing"])
@pytest.mark.parametrize("masking", sorted(STRATEGIES))
def test_every_layer_reads_a_control_without_a_gene(stored, folder, masking, encoder):
    if encoder != "none" and not STRATEGIES[masking].has_tokens:
        pytest.skip("this masking has no tokens")
    settings = (f"model.pathway.masking={masking}", f"model.encoder.kind={encoder}", "train.epochs=1")
    model, _ = fit(stored, config(folder, *settings, "effects.weight=0"))
    assert np.isfinite(model.predict_means(["drug 1"], context="t")).all(axis=None)


def test_what_has_no_meaning_for_effects_is_refused(trained, refused):
    model, _ = trained
    var = pd.DataFrame(index=[f"G{g}" for g in range(N_GENES)])
    cells = ad.AnnData(np.ones((3, N_GENES), np.float32), var=var)
    for ask in (model.activities, model.latent, lambda given: model.contributions(given, "P0")):
        assert "trained on signatures alone" in refused(ask, cells)
    sentence = refused(lambda: model.predict("drug 1", context="new", dataset="t", controls=cells))
    assert "start from no cells" in sentence


def test_a_negative_binomial_is_refused(stored, folder, refused):
    settings = config(folder, "loss.likelihood=negative_binomial")
    assert "holds effects values" in refused(fit, stored, settings)


def test_the_kind_is_named(stored, trained):
    card = model_card(trained[0].vocabulary, trained[0].config)
    assert "| t | signatures | 20 |" in card
    assert "signed effects in the units of their files" in card
    assert "model.activities" not in card
    about = describe(str(stored.folder), verify=True)
    assert about["n_cells"] == 2 * N_DRUGS
    for dataset in about["datasets"]:
        assert (dataset["kind"], dataset["values"], dataset["n_cells"]) == ("signatures", "effects", N_DRUGS)
        assert dataset["contexts"] == {dataset["name"]: N_DRUGS}
        assert "control" not in dataset["perturbations"]
    json.dumps(about)
    assert any("b: signatures by perturbation" in str(table.title) for table in as_tables(about))


def test_controls_without_a_gene_are_kept_with_a_run(trained):
    kept = unpack_controls(pq.read_table(pa.BufferReader(pack_controls(trained[0].controls))))
    assert [(len(cells), len(cells.values)) for cells in kept.values()] == [(1, 0), (1, 0)]
