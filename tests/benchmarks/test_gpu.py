"""``scripts/gpu_check.sh`` at toy size on the CPU, and tadvae without Ray, as it runs there."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
WITHOUT_RAY = """
import importlib, pkgutil, sys
sys.modules.update(ray=None, pipelines=None, tune=None)
import tadvae
for module in pkgutil.walk_packages(tadvae.__path__, "tadvae."):
    importlib.import_module(module.name)
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.fit import fit
store, pathways, *settings = sys.argv[1:]
config = ExperimentConfig.load(None, [f"pathways.file={pathways}", "train.epochs=1", *settings])
model, groups = fit(Store.open(store), config)
print(sum(value.isfinite().all().item() for value in model.module.parameters()), len(groups))
"""


PARTS = ("gpu", "gpu_batch", "gpu_checks", "gpu_rows", "gpu_speed")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu
    import gpu_checks

    monkeypatch.setattr(gpu_checks, "VARIANTS", [("hard", "none"), ("linear", "none")])
    yield gpu
    for part in PARTS:
        sys.modules.pop(part)


def rows(gpu, step, folder):
    gpu.STEPS[step](gpu.Rows(folder / f"{step}.jsonl"), CPU, gpu.TOY)
    (folder / f"{step}.exit").write_text("0\n")
    found = [json.loads(line) for line in (folder / f"{step}.jsonl").read_text().splitlines()]
    assert not [row for row in found if "error" in row]
    return found


def test_steps_on_the_cpu(gpu, tmp_path, one_thread):
    """Every step but the ranks runs; what is compared with float64 agrees; the CPU's table is not stored."""
    assert {row["what"] for row in rows(gpu, "machine", tmp_path)} == {"machine", "copy", "product"}
    parity = rows(gpu, "parity", tmp_path)
    assert len(parity) == 4
    assert all(row["within"] for row in parity)
    assert len(rows(gpu, "waits", tmp_path)) == 2
    assert all(row["gap"] == 0.0 for row in rows(gpu, "resume", tmp_path))
    buckets, *_, plain, kernel = rows(gpu, "kernels", tmp_path)
    assert (buckets["how"], plain["how"], kernel["how"]) == ("buckets", "torch", "numba")
    assert kernel["gap"] < 1e-5
    found = gpu.table(tmp_path, tmp_path / "results")
    assert [each["step"] for each in found["failed"]] == ["speed", "ranks"]
    assert found["card"] == "CPU"
    assert not (tmp_path / "results").exists()


@pytest.mark.slow  # two processes that import torch
def test_two_ranks_equal_one(gpu):
    """With the options of DDP that runs have; in one step a rank has a bag of controls alone."""
    import gpu_checks

    assert gpu_checks.ranks_gap("gloo", 2, "cpu") < 1e-9


def test_a_variant_that_fails_is_a_row(gpu, tmp_path):
    found = gpu.Rows(tmp_path / "rows.jsonl")
    with found.failing(what="speed", masking="hard"):
        raise RuntimeError("no such kernel\nmore")
    found.add(what="speed", masking="none", ms=1.0)
    first, second = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    failed = {"what": "speed", "masking": "hard", "error": "RuntimeError: no such kernel", "at": "benchmark"}
    assert first == failed
    assert second["ms"] == 1.0
    known = {"what": "waits", "expected": "some", "error": "RuntimeError: a wait"}
    assert [gpu.as_expected(row) for row in (first, second, known)] == [False, True, True]
    assert not gpu.as_expected(known | {"expected": "none"})
    assert not gpu.as_expected({"what": "parity", "within": False})


def test_the_script_has_a_limit_for_every_step(gpu):
    script = ROOT / "scripts" / "gpu_check.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    steps = re.findall(r"^step (\w+) (\d+)$", script.read_text(), re.M)
    assert [name for name, _ in steps] == list(gpu.STEPS)
    assert sum(int(seconds) for _, seconds in steps) <= 8 * 60


@pytest.mark.slow  # a process that imports torch
def test_tadvae_trains_without_ray(store, simulated):
    """All of tadvae/ can be imported, and a model trained, where Ray and pipelines/ cannot be imported."""
    settings = ["effects.weight=0", "model.pathway={d_embed: 8, n_heads: 2}", "model.causal={n_factors: 3}"]
    words = [store.folder.path, simulated.folder / "pathways.gmt", *settings]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, *map(str, words)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    finite, groups = map(int, done.stdout.split())
    assert finite > 10
    assert groups > 5
