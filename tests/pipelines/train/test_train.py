"""Training on Ray, for real: two workers, a killed one, a resumed run."""

import json
import os
import shlex
import signal
import threading
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from safetensors.numpy import load_file
from small_training import SMALL

from pipelines.cli.main import main
from pipelines.train.phases import phases
from pipelines.train.train import _begin, train
from tadvae.base.errors import UserError
from tadvae.data.reader import loop
from tadvae.model.run_folder import RunFolder
from tadvae.model.tadvae import TADVAE
from tadvae.report.gather import TERMS, Run, gather
from tadvae.settings.experiment import ExperimentConfig
from tadvae.training.validation import Validator

SETTINGS = [*SMALL, "train={epochs: 12, checkpoint_every: 2, learning_rate: 0.01, max_failures: 2}"]


def config(simulated, *more):
    return ExperimentConfig.load(
        None, [f"pathways.file={simulated.folder / 'pathways.gmt'}", *SETTINGS, *more]
    )


def log(run: Path) -> list[dict]:
    pieces = sorted((run / "log").glob("steps-*.jsonl"))
    return [json.loads(line) for piece in pieces for line in piece.read_text().splitlines()]


def losses(run: Path) -> list[tuple]:
    return [(r["step"], r["epoch"], r["loss"], r["mmd"], r["kl"]) for r in log(run)]


@pytest.fixture(scope="module")
def whole(ray_cluster, store, simulated, tmp_path_factory) -> Path:
    """A run that nothing disturbed; its paths were relative, and its workers have other working folders."""
    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(store.folder.path)
        train(".", os.path.relpath(run), config(simulated), workers=2)
    return run


class KillWorker(threading.Thread):
    """SIGKILL one training worker of this process's Ray once the run's log has some pieces."""

    def __init__(self, run: Path, pieces: int) -> None:
        super().__init__(daemon=True)
        self.run_folder, self.pieces, self.killed = run, pieces, None
        self.addresses: set[str] = set()
        """Where the workers listened."""

    def run(self) -> None:
        deadline = time.monotonic() + 500
        while time.monotonic() < deadline:
            if len(list((self.run_folder / "log").glob("steps-*.jsonl"))) >= self.pieces:
                family = psutil.Process().children(recursive=True)
                workers = [process for process in family if process.name().startswith("ray::RayTrainWo")]
                if len(workers) == 2:
                    for worker in workers:
                        found = worker.net_connections("inet")
                        self.addresses |= {c.laddr.ip for c in found if c.status == "LISTEN"}
                    os.kill(workers[0].pid, signal.SIGKILL)
                    self.killed = workers[0].pid
                    return
            time.sleep(0.02)


@pytest.mark.slow
def test_two_workers_train_and_the_loss_falls(whole, store):
    records = log(whole)
    about = json.loads((whole / "run.json").read_text())
    assert about["store"] == store.folder.path
    assert [r["step"] for r in records] == list(range(12 * about["steps_per_epoch"]))
    first = [r["loss"] for r in records if r["epoch"] == 0]
    last = [r["loss"] for r in records if r["epoch"] == 11]
    assert sum(last) / len(last) < 0.9 * sum(first) / len(first)
    assert all(r["tokens"] > 0 and r["cells"] > 0 for r in records)
    assert len([p for p in (whole / "checkpoints").iterdir() if p.is_dir()]) == 2  # the last two
    assert TADVAE.from_pretrained(whole).vocabulary.hash == about["vocabulary_hash"]
    assert not list(whole.rglob("*.tmp"))


@pytest.mark.slow
def test_the_command_of_a_report_makes_the_run_again_and_a_killed_worker_changes_nothing(
    whole, tmp_path, monkeypatch
):
    report = gather(Run.load(str(whole)), None)
    assert set(report.curves["run"].columns) == {"epoch", *TERMS}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(report.config)
    words = shlex.split(report.commands[0])
    assert words[:2] == ["tadvae", "train"]
    words[words.index("--out") + 1] = str(tmp_path / "again")
    killer = KillWorker(tmp_path / "again", pieces=5)
    killer.start()
    with pytest.raises(SystemExit) as ended:
        main(words[1:])
    assert not ended.value.code
    assert killer.killed is not None
    assert losses(tmp_path / "again") == losses(whole)
    assert weights(tmp_path / "again") == weights(whole)


@pytest.mark.slow
def test_where_the_time_of_a_run_went(whole):
    found = phases(RunFolder(whole), called=0.0)
    records = log(whole)
    assert found.first_batch == records[0]["first_batch"]
    assert sum("checkpoint" in record and record["report"] > 0 for record in records) > 5
    assert found.step > 0
    assert 0 <= found.wait < 1
    assert found.cells_a_second > 0
    assert "waiting for data" in str(found)
    assert phases(RunFolder(whole), called=time.time()) is None  # nothing since


@pytest.mark.slow
def test_a_resumed_run_equals_the_uninterrupted_one(store, simulated, tmp_path, whole):
    run = tmp_path / "run"
    killer = KillWorker(run, pieces=7)
    killer.start()
    with pytest.raises(Exception, match="worker"):
        train(str(store.folder), str(run), config(simulated, "train.max_failures=0"), workers=2)
    assert killer.killed is not None
    assert {address.removeprefix("::ffff:") for address in killer.addresses} == {"127.0.0.1"}
    assert not (run / "model" / "model.safetensors").exists()
    with pytest.raises(UserError, match="not finished"):
        TADVAE.from_pretrained(run)
    before = len(log(run))
    train(str(store.folder), str(run), None, workers=2, resume=True)
    assert 0 < before < len(log(run))
    assert losses(run) == losses(whole)
    assert weights(run) == weights(whole)


@pytest.mark.slow
def test_training_ends_with_the_best_validation(ray_cluster, store, simulated, tmp_path):
    """And so does a run that is given again after its last step."""
    settings = ["validation={every: 1, folds: 2, patience: 1}", "train.epochs=40", "train.learning_rate=0.05"]
    chosen, run = config(simulated, *settings), tmp_path / "run"
    train(str(store.folder), str(run), chosen, workers=2)
    validations = [record for record in log(run) if "val_pearson_delta" in record]
    values = [record["val_pearson_delta"] for record in validations]
    best = values.index(max(values))
    assert len(values) == best + 2 < 40
    assert log(run)[-1]["epoch"] == validations[-1]["epoch"]  # it stopped there
    model = TADVAE.from_pretrained(run)
    groups = pd.read_parquet(run / "split.parquet")
    again = Validator(store, groups, model.vocabulary, chosen, model.effects).score(model.module)
    assert again["val_pearson_delta"] == pytest.approx(values[best], abs=1e-5)
    before = weights(run)
    (run / "model" / "model.safetensors").unlink()
    train(str(store.folder), str(run), chosen, workers=2)
    assert weights(run) == before


def weights(run: Path) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in load_file(run / "model" / "model.safetensors").items()}


def test_a_run_folder_is_not_used_twice(store, simulated, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"already holds a run.*--resume"):
        train(str(store.folder), str(tmp_path / "run"), config(simulated))
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["pathways.file=null"], "packaged default pathways: none of its 3227 .* 5 or more measured genes"),
        (["pathways.file=/nowhere/x.gmt"], "/nowhere/x.gmt"),
        (["pathways.min_measured=90"], "none of its 9 pathways has 90 or more measured genes"),
        (["split.datasets=[up, sideways]"], "the store has no dataset sideways"),
        (["split={kind: explicit, test: [G9+G10]}"], "no perturbation, context or dataset called G9"),
        (["split={kind: explicit, test: [up, down]}"], "nothing is left to learn from"),
        (["preprocess.normalize=tpm"], "tpm needs gene lengths"),
    ],
)
def test_bad_settings_leave_nothing(store, simulated, tmp_path, settings, sentence):
    with pytest.raises(UserError, match=sentence):
        train(str(store.folder), str(tmp_path / "run"), config(simulated, *settings))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["train.epoch=3"], "unknown setting 'train.epoch'"),
        (["train.epochs=many"], "'train.epochs'"),
        (["train.epochs"], "expected key=value"),
        (["model.pathway={masking: hard, leak: 0.1}"], "'leak' belongs to masking 'linear'"),
        (["model.pathway={d_embed: 100, n_heads: 8}"], "not a multiple"),
        (["split={kind: combo, fold: 7}"], "fold 7 is not below folds 5"),
    ],
)
def test_settings_that_do_not_validate(settings, sentence):
    with pytest.raises(UserError, match=sentence):
        ExperimentConfig.load(None, settings)


def test_resume_needs_the_run_and_its_store(store, tmp_path):
    with pytest.raises(UserError, match="no run to resume"):
        train(str(store.folder), str(tmp_path / "run"), None, resume=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    (tmp_path / "run" / "run.json").write_text('{"vocabulary_hash": "0123456789abcdef"}')
    with pytest.raises(UserError, match="another gene vocabulary"):
        train(str(store.folder), str(tmp_path / "run"), None, resume=True)


def test_more_workers_than_the_cluster_has(ray_cluster, store, simulated, tmp_path):
    with pytest.raises(UserError, match=r"has 4 CPUs, but this run needs 64.*lower --workers"):
        train(str(store.folder), str(tmp_path / "run"), config(simulated), workers=64)
    with pytest.raises(UserError, match=r"has 0 GPUs.*leave out --gpu"):
        train(str(store.folder), str(tmp_path / "run"), config(simulated), workers=1, gpu=True)
    assert not (tmp_path / "run").exists()


def test_a_split_that_holds_nothing_out_is_said(write_spec, screen, convert_here, tmp_path, capsys):
    singles = screen[screen.obs["condition"] != "G1+G2"].copy()
    store = convert_here(write_spec(singles))
    (tmp_path / "sets.gmt").write_text("P\tall of them\t" + "\t".join(singles.var_names) + "\n")
    for kind, said in (("combo", True), ("single", False)):
        settings = [f"pathways.file={tmp_path / 'sets.gmt'}", f"split.kind={kind}", "split.folds=2"]
        run = RunFolder(tmp_path / kind)
        _begin(run, store, str(store.folder), ExperimentConfig.load(None, settings), 1, False, loop)
        assert run.is_begun
        assert ("holds nothing out of this store" in capsys.readouterr().err) == said
