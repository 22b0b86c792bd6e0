"""``make bench`` at toy size: every script runs, and the page comes from what was stored."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bench

    yield bench
    for name in ("bench", "claims", "scale"):
        sys.modules.pop(name, None)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_every_script_runs(ray_cluster, bench, tmp_path, monkeypatch):
    words = ["bench.py", "--quick", "--results", str(tmp_path / "found")]
    words += ["--page", str(tmp_path / "benchmarks.md"), "--folder", str(tmp_path / "scratch")]
    words += ["--python312", "no-such-python"]  # annbatch would be installed
    monkeypatch.setattr(sys, "argv", words)
    assert bench.main() == 0
    found = {place.stem: json.loads(place.read_text()) for place in (tmp_path / "found").glob("*.json")}
    assert set(found) == {
        "attention", "conversion", "embedding", "encoders", "growth", "loader", "memory", "prediction",
        "scale", "sweeps", "train_step",
    }  # fmt: skip
    text = (tmp_path / "benchmarks.md").read_text()
    assert text.count("not run: no Python 3.12 here") == 1
    aims = [aim for each in found.values() for aim in each["aims"]]
    assert all(aim["what"] in text for aim in aims)
    assert text.count("| met |") == sum(aim["met"] is True for aim in aims)
    assert text.count("**not met**") == sum(aim["met"] is False for aim in aims)
    assert "decoding threads a GPU" in (tmp_path / "scale.md").read_text()


def test_the_page_says_what_is_met(bench):
    import claims

    made = claims.Claims("loader", "What it does.")
    made.aim("this over that", 2.0, at_least=1)
    made.aim("memory", 3.0, at_most=2)
    made.not_run("other", "≥ 1", "it is absent")
    made.table("Rates", [{"loader": "ours", "cells/s": 41234.5}])
    made.note("A remark.")
    found = made.found | {"machine": "2 cores", "seconds": 60.0}
    lines = bench.page([found]).splitlines()
    assert "| [Loader](#loader) | this over that | 2 | ≥ 1 | met |" in lines
    assert "| [Loader](#loader) | memory | 3 | ≤ 2 | **not met** |" in lines
    assert "| [Loader](#loader) | other |  | ≥ 1 | not run: it is absent |" in lines
    assert "| ours | 41,234 |" in lines
    assert "- A remark." in lines
    assert any(line.startswith("Not run: no GPU was available.") for line in lines)


def test_the_page_shows_what_gpus_did(bench):
    found = {"name": "loader", "about": "", "aims": [], "tables": [], "notes": []}
    found |= {"machine": "2 cores", "seconds": 60.0}
    steps = {
        "speed": [{"masking": "hard", "ms": 1.25}, {"masking": "none", "error": "it failed"}],
        "ranks": [],
    }
    card = {"card": "H100", "torch": "2.11", "steps": steps, "failed": [{"step": "ranks", "exit": "124"}]}
    lines = bench.page([found], [card]).splitlines()
    assert not any("Not run" in line for line in lines)
    assert "### H100, torch 2.11" in lines
    assert "| hard | 1.25 |  |" in lines
    assert "| none |  | it failed |" in lines
    assert "- **ranks** ended with exit code 124." in lines


def test_the_simulated_pipeline(bench):
    """The slower of decoding and stepping decides, and waiting is what is left."""
    from scale import Assumed, Pipeline, needed_threads, simulate

    calm = Assumed(latency=0.0, jitter=0.0, step_jitter=0.0)
    slow_step = Pipeline(decode=0.01, threads=1, step=0.1, cells_a_step=512)
    wait, speed = simulate(slow_step, calm, n_ranks=3, n_steps=200)
    assert wait == pytest.approx(0, abs=0.01)
    assert speed == pytest.approx(3 * 512 / 0.1, rel=0.01)
    slow_decode = Pipeline(decode=0.1, threads=1, step=0.01, cells_a_step=512)
    wait, speed = simulate(slow_decode, calm, n_ranks=3, n_steps=400)
    assert speed == pytest.approx(3 * 1024 / 0.1, rel=0.05)
    assert wait == pytest.approx(0.8, abs=0.05)  # 50 ms for the data of a step of 10 ms
    threads, wait, _ = needed_threads(slow_decode, calm, n_ranks=3, n_steps=400)
    assert threads in (5, 6, 7)
    assert wait <= 0.05
