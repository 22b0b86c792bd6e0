"""Sweeps on Ray, for real: stopped trials, nothing leaked, a killed driver, the figures of the table."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import psutil
import pytest
from process_end import kill_what_stays

from pipelines.train.train import train
from tadvae.base.errors import UserError
from tadvae.base.filesystem import LOCK, Location
from tadvae.model.card import escape_markdown
from tadvae.model.tadvae import TADVAE
from tadvae.settings.experiment import ExperimentConfig
from tadvae.training.prepare import prepare_training
from tadvae.training.validation import Validator
from tune.cli import main
from tune.config import SweepConfig
from tune.records import best_of, read_records, read_sweep
from tune.search import optuna_search
from tune.sweep import run_sweep

ROOT = Path(__file__).parents[2]
WITHOUT_A_CLUSTER = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def log(run: Path) -> list[dict]:
    """Every step of a run, from its own log."""
    pieces = sorted((run / "log").glob("steps-*.jsonl"))
    return [json.loads(line) for piece in pieces for line in piece.read_text().splitlines()]


@pytest.mark.slow
def test_eight_trials_over_all_strategies_and_none_leaks(ray_cluster, earlier_groups, swept):
    records = read_records(Location.of(swept))
    assert [r.number for r in records] == list(range(8))
    assert {r.values["model.pathway.masking"] for r in records} == {
        "hard",
        "soft",
        "soft_log",
        "linear",
        "none",
    }
    by_status = {status: [r for r in records if r.status == status] for status in ("finished", "stopped")}
    assert len(by_status["finished"]) + len(by_status["stopped"]) == 8
    assert len(by_status["stopped"]) >= 2
    assert len(by_status["finished"]) >= 2
    for record in by_status["stopped"]:
        assert "is below" in record.reason
        assert len(record.curve) < 3
        assert not (swept / f"trials/{record.number:04d}/run/model/model.safetensors").exists()
    groups = assert_nothing_is_held(ray_cluster, earlier_groups)
    assert len(groups) >= 8  # one for each trial
    assert not (swept / "tune").exists()


def assert_nothing_is_held(ray_cluster, earlier_groups: set[str]) -> dict:
    """Wait until what the trials held is given back; returns their placement groups."""
    deadline = time.monotonic() + 120
    while True:
        table = ray_cluster.util.placement_group_table()
        ours = {name: entry for name, entry in table.items() if name not in earlier_groups}
        left = [entry for entry in ours.values() if entry["state"] != "REMOVED"]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert left == []
    while ray_cluster.available_resources().get("CPU") != 4 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert ray_cluster.available_resources()["CPU"] == 4
    return ours


@pytest.mark.slow
def test_records_have_what_the_runs_logged(swept):
    for record in read_records(Location.of(swept)):
        run = swept / f"trials/{record.number:04d}/run"
        validated = [r for r in log(run) if "val_pearson_delta" in r][: len(record.curve)]
        cells = [sum(r["cells"] for r in log(run) if r["epoch"] <= v["epoch"]) for v in validated]
        assert [p["cells_seen"] for p in record.curve] == cells
        for key in ("epoch", "loss", "val_pearson_delta", "val_l2", "val_rmse", "val_cosine_logfc"):
            assert [p[key] for p in record.curve] == [r[key] for r in validated]
        assert [p["epoch"] for p in record.curve] == list(range(len(record.curve)))
        config = ExperimentConfig.load_text((run / "config.yaml").read_text(), "config.yaml")
        assert config.train.learning_rate == record.values["train.learning_rate"]
        assert config.model.pathway.masking == record.values["model.pathway.masking"]


@pytest.mark.slow
def test_the_metric_is_that_of_the_weights_that_are_left(store, swept):
    finished = [r for r in read_records(Location.of(swept)) if r.status == "finished"]
    for record in finished[:2]:
        run = swept / f"trials/{record.number:04d}/run"
        model = TADVAE.from_pretrained(run)
        groups = pd.read_parquet(run / "split.parquet")
        again = Validator(store, groups, model.vocabulary, model.config, model.effects).score(model.module)
        assert record.curve[-1]["val_pearson_delta"] == pytest.approx(again["val_pearson_delta"], abs=1e-6)
        assert record.curve[-1]["val_l2"] == pytest.approx(again["val_l2"], abs=1e-6)


class Page(HTMLParser):
    """What a page holds, and what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.lines: list[dict] = []
        self.titled: list[str] = []
        self.cells: list[list[str]] = []
        self.words = ""

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "data") and v]
        if tag == "polyline":
            self.lines.append(values)
        if tag == "svg":
            assert values["role"] == "img"
            self.titled.append(values["aria-labelledby"])
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data


@pytest.mark.slow
def test_the_report_has_the_figures_of_the_raw_results(swept, tmp_path, capsys):
    main_exits(["tune", "table", str(swept), "--out", str(tmp_path / "report")])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown  # no colours in a log
    config, records = read_sweep(Location.of(swept)), read_records(Location.of(swept))
    raw = {}
    for record in records:  # from the runs' own logs, not from the records
        steps = log(swept / f"trials/{record.number:04d}/run")
        raw[record.number] = [r["val_pearson_delta"] for r in steps if "val_pearson_delta" in r][
            : len(record.curve)
        ]

    table = pd.read_parquet(tmp_path / "report/trials.parquet")
    assert dict(zip(table["trial"], table["val_pearson_delta"], strict=True)) == {
        k: v[-1] for k, v in raw.items()
    }
    finished = {r.number for r in records if r.status == "finished"}
    order = sorted(raw, key=lambda n: (n not in finished, -raw[n][-1]))
    assert table["trial"].tolist() == order
    assert table["rank"].tolist() == list(range(1, 9))
    assert dict(zip(table["trial"], table["reason"], strict=True)) == {r.number: r.reason for r in records}
    assert table.set_index("trial")["epochs"].to_dict() == {k: len(v) for k, v in raw.items()}
    linear = table["model.pathway.masking"] == "linear"
    assert table.loc[linear, "model.pathway.d_embed"].isna().all()
    assert (
        table.loc[~linear, "model.pathway.d_embed"] == 16 * table.loc[~linear, "model.pathway.n_heads"]
    ).all()
    with (tmp_path / "report/trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["trial"]) for r in rows] == order
    assert [float(r["val_pearson_delta"]) for r in rows] == [raw[n][-1] for n in order]
    markdown = (tmp_path / "report/trials.md").read_text().splitlines()
    assert len(markdown) == 10
    assert {line.count("|") for line in markdown} == {len(table.columns) + 1}
    for record in records:
        assert f"{raw[record.number][-1]:.3g}" in shown

    html = (tmp_path / "report/sweep.html").read_text()
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    assert all(each.startswith("data:text/csv;") for each in page.loads)
    assert "http" not in html.replace("http://www.w3.org", "")
    assert len(page.titled) == 3
    assert all(f'id="{name}"' in html for names in page.titled for name in names.split())
    rows = [cells[1] for cells in page.cells if cells[0] in ("rank", *map(str, range(1, 9)))]
    assert rows == ["trial", *(str(n) for n in order)] * 2  # settings and results, then the other scores
    assert f"val_pearson_delta {raw[order[0]][-1]:.4f} (trial {order[0]:04d}); the second" in page.words
    assert sorted(int(line["data-trial"]) for line in page.lines) == sorted([*range(8), *range(8)])
    # the learning curve's points, back from pixels to the metric
    values = [v for curve in raw.values() for v in curve]
    low, high = min(values), max(values)
    curves = {int(line["data-trial"]): line["points"].split() for line in page.lines[8:]}
    for number, curve in raw.items():
        heights = [(322 - float(point.split(",")[1])) / 270 for point in curves[number]]
        assert [low + h * (high - low) for h in heights] == pytest.approx(curve, abs=(high - low) / 500)
    dashed = {int(line["data-trial"]) for line in page.lines if "stroke-dasharray" in line}
    assert dashed == set(raw) - finished
    assert best_of(records, config).number == order[0]


def main_exits(arguments: list[str], code: int = 0) -> None:
    """Run the command; it must end with this exit code."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert (ended.value.code or 0) == code


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="apt install chromium to draw the page")
def test_a_browser_draws_the_page(swept, tmp_path):
    main_exits(["tune", "table", str(swept), "--out", str(tmp_path / "r"), "--format", "html"])
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["sweep.html"]
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    url = (tmp_path / "r/sweep.html").as_uri()
    dom = subprocess.run(
        [*command, "--dump-dom", url], capture_output=True, text=True, timeout=300, check=True
    )
    assert dom.stdout.count("<polyline") == 16
    assert "Best settings" in dom.stdout


@pytest.mark.slow
def test_train_takes_the_best_settings(store, swept, tmp_path):
    main_exits(["tune", "table", str(swept), "--out", str(tmp_path / "r"), "--format", "yaml"])
    assert (tmp_path / "r/best.yaml").read_text() == (swept / "best.yaml").read_text()
    config = ExperimentConfig.load(tmp_path / "r/best.yaml", ["train.epochs=1"])
    best = best_of(read_records(Location.of(swept)), read_sweep(Location.of(swept)))
    assert config.train.learning_rate == best.values["train.learning_rate"]
    assert config.validation.every is None
    train(str(store.folder), str(tmp_path / "run"), config)
    groups = pd.read_parquet(tmp_path / "run/split.parquet")
    assert "validation" not in set(groups["part"])
    tuned = pd.read_parquet(swept / f"trials/{best.number:04d}/run/split.parquet")
    assert (groups["part"] == "test").equals(tuned["part"] == "test")


def assert_private(family: list[psutil.Process]) -> None:
    """A Ray of this machine: no server for other machines, and no folder for other users."""
    addresses, folders = set(), set()
    for process in family:
        with suppress(psutil.Error):
            addresses |= {c.laddr.ip for c in process.net_connections("inet") if c.status == "LISTEN"}
            folders |= set(
                re.findall(r"[= ](/[^= ]*/tadvae-[^/ ]+)(?=/r/session_)", " ".join(process.cmdline()))
            )
    assert len(addresses) >= 1
    assert {address.removeprefix("::ffff:") for address in addresses} == {"127.0.0.1"}
    (folder,) = folders
    assert os.stat(folder).st_mode & 0o777 == 0o700
    assert os.stat(Path.home() / ".ray/auth_token").st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_a_killed_sweep_goes_on_without_repeating(ray_cluster, store, space_file, tmp_path, capfd):
    """SIGKILL ends a driver with a Ray of its own in the middle; another goes on, on the session's Ray."""
    out = tmp_path / "sweep"
    command = ["tune", "run", str(store.folder), "--out", str(out)]
    settings = ["--config", str(space_file), "--trials", "3", "--max-concurrent", "1"]
    settings += ["--set", "scheduler.grace_epochs=2", "--set", "experiment.train.epochs=6"]
    deep = tmp_path / "net/scratch/people/longusername/slurm_jobdir/1355700/tmp.t0016/and/deeper"
    deep.mkdir(parents=True)
    with (tmp_path / "first.log").open("wb") as text:
        driver = subprocess.Popen(
            [sys.executable, "-m", *command, *settings],
            stdout=text,
            stderr=text,
            cwd=ROOT,
            env={**WITHOUT_A_CLUSTER, "TMPDIR": str(deep)},  # too long for Ray's sockets
            start_new_session=True,
        )
        family: list[psutil.Process] = []
        try:
            deadline = time.monotonic() + 400
            while not (out / LOCK).exists():
                assert driver.poll() is None, (tmp_path / "first.log").read_text()
                time.sleep(0.05)
            main_exits([*command, "--resume"], code=2)
            assert f"process {driver.pid} on " in capfd.readouterr().err
            looked = False
            while time.monotonic() < deadline and driver.poll() is None:
                records = read_records(Location.of(out)) if out.exists() else []
                ended = [r for r in records if r.status != "running"]
                if not looked and any(r.curve for r in records):  # workers of the first trial are there
                    assert_private(psutil.Process(driver.pid).children(recursive=True))
                    looked = True
                if ended and any(r.status == "running" and r.curve for r in records):
                    break
                time.sleep(0.05)
            assert driver.poll() is None, (tmp_path / "first.log").read_text()
            assert looked
            family = psutil.Process(driver.pid).children(recursive=True)
        finally:
            driver.kill()  # SIGKILL
            driver.wait()
            kill_what_stays(family)
    assert driver.returncode == -signal.SIGKILL
    before = {r.number: r for r in read_records(Location.of(out))}
    ended = [r for r in before.values() if r.status != "running"]
    stopped_at = next(r for r in before.values() if r.status == "running")
    touched = {r.number: _touched(out, r.number) for r in ended}
    assert ended
    assert stopped_at.curve

    capfd.readouterr()
    main_exits([*command, "--resume"])
    said = capfd.readouterr().out
    assert f"{len(ended)} trials have ended, 1 continue, {3 - len(ended)} to run" in said
    after = {r.number: r for r in read_records(Location.of(out))}
    assert sorted(after) == [0, 1, 2]
    assert all(r.status in ("finished", "stopped") for r in after.values())
    for record in ended:
        assert after[record.number] == record
        assert _touched(out, record.number) == touched[record.number]
        assert f"\ntrial {record.number:04d}:" not in said  # lines about the sweep may name it as the best
    assert f"trial {stopped_at.number:04d}: continues" in said
    again = after[stopped_at.number]
    assert again.values == stopped_at.values
    assert again.curve[: len(stopped_at.curve)] == stopped_at.curve
    cells = [p["cells_seen"] for p in again.curve]
    assert cells == sorted(set(cells))
    assert len({str(r.values) for r in after.values()}) == 3
    assert not (out / "tune").exists()


def _touched(out: Path, number: int) -> dict[str, int]:
    """When each file of a trial was last written."""
    folder = out / f"trials/{number:04d}"
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_trials_of_two_workers_finish_stop_and_fail(
    ray_cluster, store, space_file, tmp_path, capsys, monkeypatch, refused
):
    """Ray Train's workers are given back; what nobody could know before fails its trial alone."""
    data = SweepConfig.load(space_file).model_dump(mode="json")
    data |= {"trials": 3, "max_concurrent": 1, "workers": 2, "derived": {}}
    data["parameters"] = {
        "pathways.min_measured": {"choice": [2, 90]},
        "train.learning_rate": {"choice": [1e-7, 0.02]},
    }
    data["experiment"]["train"]["epochs"] = 2

    def suggested(seed: int) -> list[tuple]:
        search = optuna_search(SweepConfig.parse({**data, "seed": seed}, "data"), [])
        return [tuple(search.suggest(name)["values"].values()) for name in "abc"]

    good_bad_refused = [(2, 0.02), (2, 1e-7), (90, 0.02)]
    seed = next(seed for seed in range(500) if suggested(seed) == good_bad_refused)
    config = SweepConfig.parse({**data, "seed": seed}, "data")
    earlier = set(ray_cluster.util.placement_group_table())
    sentence = refused(run_sweep, str(store.folder), str(tmp_path / "sweep"), config)
    assert sentence.startswith("a trial with min_measured=90: ")
    assert not (tmp_path / "sweep").exists()
    monkeypatch.setattr(
        "tune.sweep.check_trials", lambda store, trials, mapper: prepare_training(store, config.experiment)
    )
    records = run_sweep(str(store.folder), str(tmp_path / "sweep"), config)
    assert [r.status for r in records] == ["finished", "stopped", "failed"]
    assert {r["workers"] for r in log(tmp_path / "sweep/trials/0000/run")} == {2}
    assert len(assert_nothing_is_held(ray_cluster, earlier)) >= 5  # three drivers', two trainings'
    assert "none of its 9 pathways has 90 or more measured genes" in records[2].reason
    capsys.readouterr()
    main_exits(["tune", "table", str(tmp_path / "sweep"), "--out", str(tmp_path / "report")])
    assert "failed" in capsys.readouterr().out
    assert escape_markdown(records[2].reason) in (tmp_path / "report/trials.md").read_text()
    assert len(read_records(Location.of(tmp_path / "sweep"))) == 3


def test_bad_input_leaves_nothing(ray_cluster, store, space_file, tmp_path, refused):
    config = SweepConfig.load(space_file)
    out = tmp_path / "sweep"
    wrong = SweepConfig.load(space_file, ["experiment.pathways.file=/nowhere/x.gmt"])
    assert "/nowhere/x.gmt" in refused(run_sweep, str(store.folder), str(out), wrong)
    many = SweepConfig.load(space_file, ["max_concurrent=60"])
    assert "has 4 CPUs, but this run needs 62" in refused(run_sweep, str(store.folder), str(out), many)
    assert "no sweep" in refused(run_sweep, str(store.folder), str(out), None, resume=True)
    assert not out.exists()
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "already holds a sweep" in refused(run_sweep, str(store.folder), str(out), config)
    assert [p.name for p in out.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "/nowhere", "--out", "{out}"], "/nowhere"),
        (["run", "/nowhere", "--out", "{out}", "--set", "trials=many"], "'trials'"),
        (["run", "/nowhere", "--out", "{out}", "--resume", "--workers", "2"], "--resume continues"),
        (["table", "{out}"], "no sweep"),
        (["table", "{out}", "--format", "csv"], "name their folder with --out"),
        (["table", "{out}", "--out", "{out}", "--format", "xls"], "--format xls: no such format"),
    ],
)
def test_the_command_ends_with_a_sentence_and_2(tmp_path, capsys, arguments, sentence):
    out = str(tmp_path / "out")
    with pytest.raises(SystemExit) as ended:
        main(["tune", *(argument.replace("{out}", out) for argument in arguments)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.startswith("tadvae: ")
    assert not Path(out).exists()


@pytest.mark.slow
def test_the_job_entry_point_has_exit_codes(tmp_path):
    command = [sys.executable, "-m", "tune", "run", "/nowhere", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=WITHOUT_A_CLUSTER, timeout=300
    )
    assert done.returncode == 2
    assert done.stderr.startswith("tadvae: /nowhere")
    assert "Traceback" not in done.stderr


def test_damaged_records_are_refused(tmp_path, refused):
    (tmp_path / "trials/0000").mkdir(parents=True)
    place = tmp_path / "trials/0000/trial.json"
    place.write_text("{")
    assert "not the record of a trial" in refused(read_records, Location.of(tmp_path))
    place.write_text('{"number": "first"}')
    assert str(place) in refused(read_records, Location.of(tmp_path))


@pytest.mark.slow
@pytest.mark.ray
def test_a_ray_without_its_dashboard_is_refused():
    """There, stopped trials would keep their CPUs for ever."""
    code = (
        "import pipelines, ray\n"
        "from pipelines.cluster.connection import require_cleaning\n"
        "ray.init(address='local', num_cpus=1, include_dashboard=False)\n"
        "try:\n    require_cleaning()\nexcept Exception as error:\n    print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=WITHOUT_A_CLUSTER,
        timeout=300,
    )
    assert "UserError this Ray's dashboard does not answer its workers" in done.stdout, done.stderr


@pytest.mark.slow
def test_the_wheel_carries_the_space(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, check=True, cwd=ROOT, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        scripts = archive.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert {
        "tune/cli.py",
        "tune/configs/paper.yaml",
        "tune/configs/space.yaml",
        "pipelines/cli/main.py",
        "tadvae/model/tadvae.py",
    } <= names
    templates = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("t*/**/*.j2")}
    assert len(templates) == 9
    assert templates | {"tadvae/report/templates/page.css", "tadvae/report/templates/table.js"} <= names
    assert "tadvae = tune.cli:main" in scripts


def test_resume_needs_the_sweeps_own_store(store, tmp_path):
    (tmp_path / "sweep.json").write_text('{"vocabulary_hash": "0123456789abcdef"}')
    (tmp_path / "sweep.yaml").write_text(
        "experiment: {validation: {every: 1}}\nparameters: {seed: {choice: [1, 2]}}\n"
    )
    with pytest.raises(UserError, match="another gene vocabulary"):
        run_sweep(str(store.folder), str(tmp_path), None, resume=True)
