"""The main job on real screens: convert, train with two workers on all of them, evaluate, predict."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml
from reference_baselines import by_definition, linear_by_definition, ridge_by_definition

from pipelines.convert import convert
from pipelines.evaluate import evaluate_run, tables
from pipelines.predict import predict_to
from pipelines.train.train import train
from tadvae.evaluation.baselines import Profiles
from tadvae.model.tadvae import TADVAE
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store

pytestmark = pytest.mark.slow

EPOCHS = 3


def spec(data: Path) -> dict:
    def screen(name, file, **settings):
        return {"name": name, "path": str(data / file), **settings}

    by_condition = {"column": "condition", "control": "control", "separator": "+"}
    return {
        "datasets": [
            screen("norman19", "screens/norman19_k562_crispra.h5ad", perturbation=by_condition,
                   context={"column": "cell_type"}, modality="CRISPRa"),
            screen("mcfaline23", "screens/mcfaline23_gbm_crispri.h5ad", perturbation=by_condition,
                   context={"column": "cell_type"}, modality="CRISPRi"),
            screen("datlinger21", "screens/datlinger21_jurkat_crispr_tcr.h5ad", perturbation=by_condition,
                   context={"value": "Jurkat"}, modality={"default": "CRISPRko", "TCR": "stimulation"}),
            screen("papalexi21", "screens/papalexi21_thp1_eccite.h5ad", perturbation=by_condition,
                   context={"value": "THP1"}, modality="CRISPRko", batch="bio_rep",
                   total_counts="cov_response_n_umis"),
            screen("kang18", "screens/kang18_pbmc_ifnb.h5ad", perturbation=by_condition,
                   context={"value": "PBMC"}, modality="ligand"),
            screen("celseq2", "cells/lung_lines_celseq2_ensembl.h5ad",
                   context={"column": "cell_line_demuxlet"}),
            screen("dropseq", "cells/lung_lines_dropseq_ensembl.h5ad", context={"column": "cell_line"}),
            screen("carpool23", "profiles/carpool23_thp1_cas13d_means.h5ad", kind="profiles", values="log1p",
                   perturbation={"column": "perturbation", "control": "control", "separator": "+"},
                   context={"column": "cell_type"}, modality="Cas13d"),
        ]
    }  # fmt: skip


@pytest.fixture(scope="module")
def run(ray_cluster, data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec(data)))
    convert(str(folder / "spec.yaml"), str(folder / "store"))
    pathways = data / "pathways" / "netactivity_selected_1518_genesets_weights.tsv.gz"
    settings = [
        f"pathways.file={pathways}",
        "preprocess.n_top_genes=2000",
        f"train.epochs={EPOCHS}",
        "split={kind: combo, folds: 3}",
        "model.pathway={d_embed: 32, n_heads: 2}",
    ]
    config = ExperimentConfig.load(None, settings)
    train(str(folder / "store"), str(folder / "run"), config, workers=2)
    return folder / "run"


@pytest.fixture(scope="module")
def scores(run):
    return evaluate_run(str(run))


def test_two_workers_train_on_the_whole_store_and_the_loss_falls(run):
    store = Store.open(str(run.parent / "store"))
    records = [
        json.loads(line)
        for piece in sorted((run / "log").glob("steps-*.jsonl"))
        for line in piece.read_text().splitlines()
    ]
    about = json.loads((run / "run.json").read_text())
    assert len(records) == EPOCHS * about["steps_per_epoch"]
    assert about["workers"] == 2
    split = pd.read_parquet(run / "split.parquet")
    assert set(split.loc[split["part"] == "train", "dataset"]) == set(range(len(store.manifest.datasets)))
    by_epoch = pd.DataFrame(records).groupby("epoch")["loss"].mean()
    assert by_epoch.iloc[-1] < by_epoch.iloc[0]


def source_means(path: Path, column: str, *, counts: bool) -> dict[str, np.ndarray]:
    """Mean profile of every condition of a source file, in its own gene order: CP10K, log1p."""
    adata = ad.read_h5ad(path)
    values = adata.X.toarray() if hasattr(adata.X, "toarray") else np.asarray(adata.X)
    values = values.astype(np.float64)
    if counts:
        total = values.sum(axis=1, keepdims=True)
        values = np.log1p(np.divide(values * 1e4, total, out=np.zeros_like(values), where=total > 0))
    labels = adata.obs[column].astype(str).to_numpy()
    return {label: values[labels == label].mean(axis=0) for label in np.unique(labels)}


@pytest.mark.parametrize(
    ("dataset", "file", "column", "counts", "n_held"),
    [
        ("norman19", "screens/norman19_k562_crispra.h5ad", "condition", True, 5),
        ("carpool23", "profiles/carpool23_thp1_cas13d_means.h5ad", "perturbation", False, 20),
    ],
)
def test_every_baseline_agrees_with_numpy_on_held_out_doubles(
    run, scores, data, dataset, file, column, counts, n_held
):
    store = Store.open(str(run.parent / "store"))
    number = [entry.name for entry in store.manifest.datasets].index(dataset)
    model = TADVAE.from_pretrained(run)
    panel = store.panel(number).set_index("source")["gene_index"]
    chosen = model.vocabulary.datasets[number].genes
    source = ad.read_h5ad(data / file, backed="r").var_names
    column_of = {int(panel[name]): j for j, name in enumerate(source)}
    order = [column_of[int(g)] for g in chosen]
    names = {t.name: t for t in model.vocabulary.targets}
    keys = store.genes["gene"].to_numpy()

    found = {
        tuple(sorted(canonical(part, names, keys, store) for part in label.split("+"))): mean[order]
        for label, mean in source_means(data / file, column, counts=counts).items()
        if label != "control"
    }
    control = source_means(data / file, column, counts=counts)["control"][order]
    held = scores.table[scores.table["dataset"] == dataset]
    doubles = sorted({tuple(name.split("+")) for name in held["perturbation"]})
    assert len(doubles) == n_held
    train_names = [key for key in found if key not in doubles]
    profiles = Profiles(
        control=control,
        targets=train_names,
        means=np.array([found[key] for key in train_names]),
        genes=[str(keys[g]) for g in chosen],
        target_gene={name: str(keys[t.gene]) if t.gene >= 0 else None for name, t in names.items()},
    )
    predictions = {
        name: np.array([by_definition(name, profiles, d) for d in doubles])
        for name in ("no_change", "mean", "matching_mean", "additive")
    }
    predictions["linear"] = linear_by_definition(profiles, doubles)
    predictions["additive_ridge"], _ = ridge_by_definition(profiles, doubles)
    for method, predicted in predictions.items():
        for row, double in zip(predicted, doubles, strict=True):
            got = held[(held["method"] == method) & (held["perturbation"] == "+".join(double))]
            got = got.set_index("metric")["value"]
            truth = found[double]
            assert got["l2"] == pytest.approx(np.linalg.norm(row - truth), rel=2e-4), (method, double)
            change, true_change = row - control, truth - control
            pearson = 0.0 if method == "no_change" else np.corrcoef(change, true_change)[0, 1]
            assert got["pearson_delta"] == pytest.approx(pearson, rel=2e-3, abs=2e-4), (method, double)


def canonical(name, names, keys, store) -> str:
    """The store's name of a target as the source spells it."""
    if name in names:
        return name
    from tadvae.genes.harmonise import canonical_targets

    (key,) = canonical_targets([name], store.gene_reference)
    return next(t.name for t in names.values() if t.gene >= 0 and keys[t.gene] == key)


def test_the_table_has_a_row_for_every_method(scores, capsys):
    from rich.console import Console

    for table in tables(scores):
        Console(width=200).print(table)
    printed = capsys.readouterr().out
    for method in ("no_change", "mean", "additive", "additive_ridge", "linear", "tadvae"):
        assert f" {method} " in printed
    with capsys.disabled():
        print("\n" + printed)


def test_predict_a_norman_double_and_score_pathways_of_other_cells(run, data, tmp_path):
    adata = predict_to(str(run), "KLF1+MAP2K6", "k562", str(tmp_path / "p.h5ad"))
    assert np.isfinite(adata.X).all()
    assert adata.uns["tadvae"]["dataset"] == "norman19"
    assert (adata.var["predicted_mean"] != adata.var["control_mean"]).any()
    model = TADVAE.from_pretrained(run)
    pbmc = ad.read_h5ad(data / "cells" / "pbmc4k_10x.h5ad")[:50].copy()
    activity = model.activities(pbmc)
    available = pbmc.uns["tadvae"]["available"]
    assert available.sum() > 100
    assert np.isfinite(activity.to_numpy()[:, available]).all()
