"""``tadvae train --from``: a run like any other, that begins with a model."""

import json

import pytest
from safetensors.numpy import load_file

from pipelines.evaluate import evaluate_run
from pipelines.report import report_run
from pipelines.train.alone import train_alone
from pipelines.train.ensemble import train_ensemble
from pipelines.train.train import train
from tadvae.model.ensemble import Ensemble
from tadvae.model.run_folder import RunFolder
from tadvae.model.tadvae import TADVAE
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.pretrained import Pretrained
from tune.cli import main

SETTINGS = [
    "train.epochs=2",
    "train.checkpoint_every=2",
    "split={kind: combo, folds: 2}",
    "train.trackers=[]",
]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch, one_thread):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def weights(run: RunFolder) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in load_file(run.model.path + "/model.safetensors").items()}


@pytest.fixture(scope="module")
def whole(screens_apart, tmp_path_factory):
    """A fine-tuned run, by the command line."""
    run = tmp_path_factory.mktemp("fine-tuned") / "run"
    words = [
        "train",
        str(screens_apart / "down"),
        "--from",
        str(screens_apart / "up-model"),
        "--out",
        str(run),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with pytest.raises(SystemExit) as ended:
            main([*words, *(word for each in SETTINGS for word in ("--set", each))])
    assert not ended.value.code
    return run


def test_the_run_records_its_origin_and_is_evaluated_and_reported(whole, tmp_path):
    run = RunFolder(whole)
    assert json.loads((whole / "run.json").read_text())["origin"]["name"] == "up-model"
    assert run.config().origin.endswith("up-model")
    assert [e.name for e in TADVAE.from_pretrained(whole).vocabulary.datasets] == ["up", "down"]
    scores = evaluate_run(str(whole))
    assert {"tadvae", "additive"} <= set(scores.table["method"])
    assert set(scores.table["dataset"]) == {"down"}
    report_run(str(whole), str(tmp_path / "page.html"))
    assert "fine-tuned from" in (tmp_path / "page.html").read_text()


def test_controls_of_the_former_contexts_are_kept_from_a_run(whole, screens_apart):
    model = TADVAE.from_pretrained(whole)
    assert [model.vocabulary.contexts[row].dataset for row in model.controls] == [1]
    again = Pretrained.load(str(whole))
    both = Store.open(str(screens_apart / "both"))
    kept = again.controls(both)
    assert set(kept) == set(model.controls)
    keys = both.genes["gene"].to_numpy()
    for row, cells in kept.items():
        mine = model.vocabulary.genes["gene"].to_numpy()[model.controls[row].gene_ids]
        assert keys[cells.gene_ids].tolist() == mine.tolist()


def test_an_interrupted_run_goes_on_without_the_model_it_began_with(whole, screens_apart, tmp_path):
    place = tmp_path / "model"
    TADVAE.from_pretrained(screens_apart / "up-model").save_pretrained(place)
    config = ExperimentConfig.load(None, SETTINGS, Pretrained.load(str(place)).settings())
    run, store = RunFolder(tmp_path / "run"), str(screens_apart / "down")

    class StopHereError(Exception):
        pass

    def stop(record):
        raise StopHereError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.train.train.train_alone", lambda run, store: train_alone(run, store, stop))
        with pytest.raises(StopHereError):
            train(store, str(run), config)
    for file in place.iterdir():
        file.unlink()
    train(store, str(run), None, resume=True)
    assert weights(run) == weights(RunFolder(whole))


@pytest.mark.slow
def test_two_workers_fine_tune(ray_cluster, screens_apart, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "that of the session")
    base = Pretrained.load(str(screens_apart / "up-model")).settings()
    config = ExperimentConfig.load(None, [*SETTINGS, "stream.bags_per_batch=1"], base)
    run = train(str(screens_apart / "down"), str(tmp_path / "run"), config, workers=2)
    model, former = TADVAE.from_pretrained(run.place), TADVAE.from_pretrained(screens_apart / "up-model")
    graph = [each.module.causal.adjacency().detach().numpy() for each in (model, former)]
    assert (graph[0] == graph[1]).all()
    assert model.vocabulary.origin is not None


@pytest.mark.slow
def test_an_ensemble_begins_with_one_model(ray_cluster, screens_apart, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "that of the session")
    base = Pretrained.load(str(screens_apart / "up-model")).settings()
    config = ExperimentConfig.load(None, [*SETTINGS, "train.epochs=1", "split.kind=none"], base)
    out = str(tmp_path / "ensemble")
    train_ensemble(str(screens_apart / "down"), out, config, seeds=2, calibration_folds=2, seeds_per_fold=1)
    ensemble = Ensemble.from_pretrained(out)
    assert ensemble.calibration is not None
    assert {member.vocabulary.origin.name for member in ensemble.members} == {"up-model"}
    again = train_ensemble(str(screens_apart / "down"), out, None, resume=True)
    assert again.is_calibrated


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--resume"], "leave out --config, --preset, --from and --set"),
        (["--preset", "sena"], "leave out --preset"),
        (["--set", "pathways.min_measured=4"], "pathways.min_measured: a fine-tuned model keeps"),
    ],
)
def test_what_contradicts_a_fine_tuning_is_refused(words, said, screens_apart, tmp_path, capsys):
    command = ["train", str(screens_apart / "down"), "--from", str(screens_apart / "up-model")]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--out", str(tmp_path / "run"), *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


def test_an_ensemble_is_no_model_to_begin_with(screens_apart, tmp_path, refused):
    folder = RunFolder(tmp_path / "ensemble")
    about = {
        "vocabulary_hash": "",
        "calibration_folds": 0,
        "seeds_per_fold": 1,
        "members": ["members/seed-0"],
    }
    folder.begin_ensemble(ExperimentConfig(), about)
    assert "name a member, such as" in refused(lambda: Pretrained.load(str(folder)))
