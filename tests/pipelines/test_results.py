"""``make results`` on a quick study: trained, stored, not done again, and the page from what is stored."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_screens import MODEL, SCREENS

from tadvae.evaluation.bootstrap import bootstrap_mean
from tadvae.experiment import ExperimentConfig
from tadvae.presets import PRESETS
from tadvae.simulate import simulate
from tadvae.simulation_files import write_simulation

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def results(monkeypatch, tmp_path):
    """The script, with one small study in place of the real ones."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    results = importlib.import_module("results")
    page = importlib.import_module("results_page")
    studies = importlib.import_module("studies")
    write_simulation(simulate(SCREENS), tmp_path / "screens")
    screens = yaml.safe_load((tmp_path / "screens" / "spec.yaml").read_text())["datasets"]
    for screen in screens:
        screen["path"] = str(tmp_path / "screens" / screen["path"])
    small = studies.Study(
        "small",
        screens,
        {
            "combo": studies.Split("kind: combo", 4),
            "cells": studies.Split("kind: cells", 5, calibrated=False),
        },
        (f"pathways.file={tmp_path / 'screens' / 'pathways.gmt'}", *MODEL[:4]),
        1,
        "none",
    )
    for module in (results, page):
        monkeypatch.setattr(module, "STUDIES", {"small": small})
    monkeypatch.setattr(results, "DATA", tmp_path)
    yield results
    for name in ("results", "results_page", "studies"):
        sys.modules.pop(name, None)


def test_one_command_trains_stores_and_writes(results, ray_cluster, tmp_path, capsys):
    places = {name: tmp_path / name for name in ("out", "work", "page")}
    arguments = [word for name, place in places.items() for word in (f"--{name}", str(place))]
    arguments += ["--seeds", "2", "--max-folds", "1"]
    results.main(arguments)
    stored = places["out"] / "small" / "combo-fold-0.json"
    found = json.loads(stored.read_text())
    scores = found["scores"]["values"]
    assert {"tadvae", "tadvae, seed 0", "tadvae, seed 1", "additive_ridge", "latent_additive"} <= set(
        scores["pearson_delta"]
    )
    page = places["page"].read_text()
    for method in ("no_change", "latent_additive", "**tadvae**", "noise_ceiling"):
        assert f"| {method} |" in page
    for metric, method in (("l2", "additive"), ("coverage", "tadvae")):
        mean, low, high = bootstrap_mean(np.array(scores[metric][method], dtype=float))
        assert f"{mean:.3f} [{low:.3f}, {high:.3f}]" in page
    one_seed = np.mean([scores["l2"][f"tadvae, seed {s}"] for s in (0, 1)], axis=0)
    assert f"{bootstrap_mean(one_seed).mean:.3f} [" in page
    assert "### cells" in page

    before = stored.stat().st_mtime_ns
    capsys.readouterr()
    results.main(arguments)
    assert capsys.readouterr().out.count("already there") == 2
    assert stored.stat().st_mtime_ns == before
    places["page"].unlink()
    results.main([*arguments, "--only-write"])
    assert places["page"].read_text() == page


def test_published_models_take_part(results):
    base = ExperimentConfig.load(None, ["seed=4", "split.kind=single"])
    found = results.published(base)
    assert set(found) == {"dvae", "sena"}
    for name, config in found.items():
        preset = PRESETS[name]()
        for part in ("model", "loss", "effects"):
            assert getattr(config, part) == getattr(preset, part) != getattr(base, part)
        assert (config.seed, config.split, config.train) == (4, base.split, base.train)
        assert config.pathways.units == preset.pathways.units
    assert found["dvae"].pathways.units is not None
    assert found["sena"].pathways == base.pathways
