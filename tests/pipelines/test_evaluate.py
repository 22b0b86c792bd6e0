"""Evaluation and prediction of a finished run, and the command line around them."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

from pipelines.cli.main import main
from pipelines.cluster import connection
from pipelines.evaluate import as_json, evaluate_run
from pipelines.predict import predict_to
from pipelines.train.train import train
from tadvae.base.errors import UserError
from tadvae.model.tadvae import TADVAE
from tadvae.settings.experiment import ExperimentConfig

SETTINGS = [
    "model.pathway={d_embed: 16, n_heads: 2}",
    "model.causal={n_factors: 4, hidden: 16}",
    "model.decoder={d_gene: 16, hidden: 16}",
    "train={epochs: 2, learning_rate: 0.01}",
    "split={kind: combo, folds: 2}",
]


@pytest.fixture(scope="module")
def run(store, simulated, tmp_path_factory) -> Path:
    """A run of one worker, which trains without Ray."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    pathways = f"pathways.file={simulated.folder / 'pathways.gmt'}"
    train(str(store.folder), str(folder), ExperimentConfig.load(None, [pathways, *SETTINGS]))
    return folder


@pytest.fixture(scope="module")
def scores(ray_cluster, run):
    return evaluate_run(str(run))


def normalised(path: Path) -> ad.AnnData:
    adata = ad.read_h5ad(path)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    return adata


def means(adata: ad.AnnData) -> dict[tuple[str, str], np.ndarray]:
    """Mean profile by (context, condition), straight from the source file."""
    dense = np.asarray(adata.X.todense(), np.float64)
    keys = list(zip(adata.obs["cell_type"], adata.obs["condition"], strict=True))
    return {key: dense[[k == key for k in keys]].mean(axis=0) for key in set(keys)}


@pytest.mark.slow
def test_baselines_agree_with_plain_numpy_on_the_source_files(run, scores, simulated):
    split = pd.read_parquet(run / "split.parquet")
    table = scores.table
    checked = 0
    for dataset in ("up", "down"):
        found = means(normalised(simulated.folder / f"{dataset}.h5ad"))
        rows = split[(split["dataset_name"] == dataset) & (split["perturbation_name"] != "control")]
        for held in rows[rows["part"] == "test"].itertuples():
            context, name = held.context_name, held.perturbation_name
            control, truth = found[context, "control"], found[context, name]
            train_names = rows[(rows["part"] == "train") & (rows["context_name"] == context)][
                "perturbation_name"
            ]
            a, b = name.split("+")
            assert {a, b} <= set(train_names)
            predictions = {
                "no_change": control,
                "mean": np.mean([found[context, n] for n in train_names], axis=0),
                "matching_mean": (found[context, a] + found[context, b]) / 2,
                "additive": found[context, a] + found[context, b] - control,
            }
            for method, prediction in predictions.items():
                expected = {
                    "l2": np.sqrt(((prediction - truth) ** 2).sum()),
                    "rmse": np.sqrt(((prediction - truth) ** 2).mean()),
                    "pearson_delta": 0.0
                    if method == "no_change"
                    else np.corrcoef(prediction - control, truth - control)[0, 1],
                }
                got = table[
                    (table["dataset"] == dataset)
                    & (table["context"] == context)
                    & (table["perturbation"] == name)
                    & (table["method"] == method)
                ].set_index("metric")["value"]
                for metric, value in expected.items():
                    assert got[metric] == pytest.approx(value, rel=1e-4, abs=1e-5), (method, metric)
                    checked += 1
    assert checked >= 2 * 4 * 3


@pytest.mark.slow
def test_without_ray_the_scores_are_the_same(run, scores, tmp_path, monkeypatch):
    """To the bit; the scores of the other tests are from Ray's tasks."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    monkeypatch.setattr(connection, "is_connected", lambda: False)
    monkeypatch.setattr(connection, "ray_map", None)
    again = evaluate_run(str(copy))
    pd.testing.assert_frame_equal(again.table, scores.table, check_exact=True)
    name = "evaluation/all.json"
    assert (copy / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.slow
def test_every_method_and_metric_is_there_with_an_interval(run, scores):
    summary = scores.summary()
    assert set(summary["method"]) == {
        "no_change", "mean", "matching_mean", "additive", "additive_ridge", "linear", "latent_additive",
        "context_ridge", "tadvae", "noise_ceiling", "null_95",
    }  # fmt: skip
    assert {"pearson_delta", "l2", "cosine_logfc", "rank_cosine", "mmd"} <= set(summary["metric"])
    assert (summary["low"] <= summary["mean"] + 1e-12).all()
    assert (summary["mean"] <= summary["high"] + 1e-12).all()
    saved = json.loads((run / "evaluation" / "all.json").read_text())
    assert saved == json.loads(json.dumps(as_json(scores)))


@pytest.mark.slow
def test_the_held_out_groups_are_not_in_the_log_of_what_was_learned(run, store):
    """No bag of a held-out group is among the training bags."""
    from tadvae.data.reader import training_bags

    split = pd.read_parquet(run / "split.parquet")
    held = split[split["part"] == "test"]
    bags = training_bags(store, split, ExperimentConfig.load(run / "config.yaml").split)
    keys = ["dataset", "context", "perturbation"]
    assert len(held) >= 3
    assert bags.merge(held[keys], on=keys).empty


@pytest.mark.slow
def test_predict_writes_cells_and_the_python_door_agrees(run, simulated, tmp_path):
    model = TADVAE.from_pretrained(run)
    contexts = [c.name for c in model.vocabulary.contexts if c.dataset == 1]
    seen = [t.name for i, t in enumerate(model.vocabulary.targets) if t.seen and model.unknown(i) is None]
    target = f"{seen[0]}+{seen[1]}"
    adata = predict_to(str(run), target, contexts[0], str(tmp_path / "p.h5ad"), dataset="down")
    again = ad.read_h5ad(tmp_path / "p.h5ad")
    np.testing.assert_array_equal(adata.X, again.X)
    assert again.uns["tadvae"]["started_from"] == "control cells of the run"
    assert np.isfinite(again.X).all()
    door = model.predict(f"{seen[1]} + {seen[0]}", context=contexts[0], dataset="down")
    np.testing.assert_allclose(door.X, again.X, rtol=1e-5, atol=1e-6)

    screen = ad.read_h5ad(simulated.folder / "down.h5ad")
    controls = screen[
        (screen.obs["condition"] == "control") & (screen.obs["cell_type"] == contexts[0])
    ].copy()
    controls[:40].copy().write_h5ad(tmp_path / "controls.h5ad")
    own = predict_to(
        str(run), target, "a new line", str(tmp_path / "q.h5ad"),
        controls_path=str(tmp_path / "controls.h5ad"), dataset="down",
    )  # fmt: skip
    assert own.shape == (40, len(model.vocabulary.datasets[1].genes))


@pytest.mark.slow
def test_activities_name_what_the_panel_cannot_see(run, simulated):
    model = TADVAE.from_pretrained(run)
    screen = ad.read_h5ad(simulated.folder / "up.h5ad")[:30].copy()
    activity = model.activities(screen)
    available = screen.uns["tadvae"]["available"]
    np.testing.assert_array_equal(~np.isnan(screen.obsm["X_tadvae_activity"]).any(axis=0), available)
    p = int(np.flatnonzero(available)[0])
    parts = model.contributions(screen, activity.columns[p])
    bias = model.module.pathway.bias[p].item()
    np.testing.assert_allclose(parts.sum(axis=1) + bias, activity.iloc[:, p], rtol=1e-4, atol=1e-5)
    assert model.latent(screen).shape == (30, 4)
    part = screen[:, screen.var_names[: screen.n_vars // 2]].copy()
    model.activities(part)
    assert part.uns["tadvae"]["available"].sum() < available.sum()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "context", "dataset", "sentence"),
    [
        ("NOPE", "SIMLINE1", "up", "target 'NOPE': no prediction, because it is neither a target"),
        ("SIM0001", "Mars", None, r"context 'Mars' was not in training \(known: .*--controls"),
        ("SIM0001", "SIMLINE1", None, r"context 'SIMLINE1' is in several datasets .*--dataset"),
        ("SIM0001", "SIMLINE2", "up", "dataset 'up' has no context 'SIMLINE2'"),
    ],
)
def test_predict_says_when_it_does_not_know(run, tmp_path, target, context, dataset, sentence):
    with pytest.raises(UserError, match=sentence):
        predict_to(str(run), target, context, str(tmp_path / "p.h5ad"), dataset=dataset)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_untested_gene_needs_gene_targets(run, tmp_path):
    model = TADVAE.from_pretrained(run)
    tested = {t.gene for t in model.vocabulary.targets}
    gene = next(int(g) for g in model.vocabulary.datasets[0].genes if int(g) not in tested)
    name = model.vocabulary.genes["gene"][gene]
    with pytest.raises(UserError, match="was not perturbed in training, and the network knows targets by"):
        predict_to(str(run), name, "SIMLINE1", str(tmp_path / "p.h5ad"), dataset="up")


@pytest.mark.slow
def test_evaluate_says_what_is_wrong(ray_cluster, run, tmp_path):
    with pytest.raises(
        UserError, match=r"--split combo_seen7: this run held out no such groups; it held out"
    ):
        evaluate_run(str(run), "combo_seen7")
    with pytest.raises(UserError, match="not a cell store"):
        evaluate_run(str(run), store_path=str(tmp_path))
    with pytest.raises(UserError, match="not a model folder"):
        evaluate_run(str(tmp_path))
    moved = tmp_path / "moved"
    TADVAE.from_pretrained(run).save_pretrained(moved)
    with pytest.raises(UserError, match="a model without its run"):
        evaluate_run(str(moved))
    with pytest.raises(UserError, match=r"mean control profile|several datasets"):
        TADVAE.from_pretrained(moved).predict("SIM0001", context="SIMLINE1")


@pytest.mark.slow
def test_damaged_models_are_refused(run, tmp_path):
    for name in ("model.safetensors", "genes.parquet", "vocabulary.json"):
        copy = tmp_path / name
        TADVAE.from_pretrained(run).save_pretrained(copy)
        data = (copy / name).read_bytes()
        (copy / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(UserError, match="copy"):
            TADVAE.from_pretrained(copy)


def in_a_process(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command in a process of its own."""
    command = [sys.executable, "-m", "pipelines", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def here(capfd) -> Callable[..., tuple[int, str, str]]:
    """The same in this process."""

    def here(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return ended.value.code or 0, *capfd.readouterr()

    return here


@pytest.mark.slow
def test_the_command_line_ends_bad_input_with_one_sentence_and_code_2(tmp_path, here):
    for call, arguments in (
        (here, ("convert", str(tmp_path / "none.yaml"), "--out", str(tmp_path / "store"))),
        (here, ("inspect", str(tmp_path))),
        (in_a_process, ("train", str(tmp_path), "--out", str(tmp_path / "run"))),
        (here, ("train", str(tmp_path), "--out", str(tmp_path / "run"), "--set", "x")),
        (here, ("evaluate", str(tmp_path))),
        (here, ("report", str(tmp_path), "--out", str(tmp_path / "report.html"))),
        (
            here,
            ("predict", str(tmp_path), "--target", "A", "--context", "C", "--out", str(tmp_path / "p.h5ad")),
        ),
    ):
        code, out, error = call(*arguments)
        assert code == 2, error
        assert error.startswith("tadvae: ")
        assert error.count("\n") == 1, error
        assert not out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_version_and_help(here):
    assert here("--version")[1].startswith("tadvae 0.")
    assert in_a_process("train", "--help")[0] == 0
    for command in ("convert", "inspect", "simulate", "train", "evaluate", "report", "predict"):
        code, out, _ = here(command, "--help")
        assert code == 0
        assert f" {command} " in out
