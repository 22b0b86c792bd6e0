"""``make results`` on a quick study: trained, stored, not done again, and the page from what is stored."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from small_screens import MODEL, SCREENS

from tadvae.data.splits import split_groups
from tadvae.evaluation.bootstrap import bootstrap_mean
from tadvae.settings.experiment import ExperimentConfig
from tadvae.settings.presets import PRESETS
from tadvae.simulation.files import write_simulation
from tadvae.simulation.simulate import simulate

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
    monkeypatch.setattr(results, "STRUCTURE", {})
    yield results
    for name in ("results", "results_page", "results_opening", "studies"):
        sys.modules.pop(name, None)


def two_epochs(preset):
    """A preset that trains for two epochs: published models train for a hundred."""

    def made():
        config = preset()
        return config.model_copy(update={"train": config.train.model_copy(update={"epochs": 2})})

    return made


def test_one_command_trains_stores_and_writes(results, ray_cluster, tmp_path, capsys, monkeypatch):
    shorter = {name: two_epochs(preset) for name, preset in PRESETS.items()}
    monkeypatch.setattr(results, "PRESETS", shorter)
    monkeypatch.setattr(results, "CALIBRATION_FOLDS", 2)
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
    assert f"Genes inside the 90% intervals: {mean:.3f} [" in page
    one_seed = np.mean([scores["l2"][f"tadvae, seed {s}"] for s in (0, 1)], axis=0)
    assert f"{bootstrap_mean(one_seed).mean:.3f} [" in page
    assert "### cells" in page
    published = json.loads((stored.parent / "published" / stored.name).read_text())
    assert published["scores"]["groups"] == found["scores"]["groups"]
    for model, what in (("dvae", "128 hidden units"), ("sena", "linear masking")):
        less = np.array(scores["l2"]["tadvae"]) - np.array(published["scores"]["values"]["l2"][model])
        gain = bootstrap_mean(less)
        (row,) = [line for line in page.split("### cells")[0].split("\n") if line.startswith(f"| {model} | ")]
        assert f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" in row
        assert f"- {model}: {what}" in page
    assert "- tadvae: agreement masking; " in page

    arithmetic = {m for m in scores["l2"] if not m.startswith("tadvae")} - {"noise_ceiling"}
    best = min(arithmetic, key=lambda m: np.mean(scores["l2"][m]))
    gain = bootstrap_mean(np.array(scores["l2"]["tadvae"]) - np.array(scores["l2"][best]))
    assert f"| {best} | {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] |" in page

    before = stored.stat().st_mtime_ns
    capsys.readouterr()
    results.main(arguments)
    assert capsys.readouterr().out.count("already there") == 4
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
        for part in ("model", "loss", "effects", "train", "stream"):
            assert getattr(config, part) == getattr(preset, part) != getattr(base, part)
        assert (config.seed, config.split, config.preprocess) == (4, base.split, base.preprocess)
        assert config.pathways.units == preset.pathways.units
    assert found["dvae"].pathways.units is not None
    assert found["sena"].pathways == base.pathways


def test_models_that_cannot_learn_are_left_out_with_the_reason(results, convert_here, tmp_path):
    store = convert_here(tmp_path / "screens" / "spec.yaml")
    base = ExperimentConfig.load(None, ["split={kind: combo, folds: 4}"])
    groups = split_groups(store, base.split)
    models = {"dvae": results.published(base)["dvae"], "none": base.model_copy(deep=True)}
    kept, notes = results.trainable(store, groups, models)
    assert (set(kept), notes) == ({"dvae", "none"}, [])
    models["none"] = ExperimentConfig.load(None, ["loss={mean_match: 0, alpha: {high: 0}}"])
    kept, (note,) = results.trainable(store, groups, models)
    assert set(kept) == {"dvae"}
    assert note.startswith("none: not trained, nothing in the data")


def test_published_models_are_compared_on_their_own_groups(results):
    """A model without scores leaves its reason; one whose groups are others is not compared."""
    page = importlib.import_module("results_page")
    ours = [fold(0, [0.7, 0.8], [1.0, 3.0]), fold(1, [0.6, 0.7], [3.0, 1.0])]
    values = {"pearson_delta": {"dvae": [0.5, 0.7]}, "l2": {"dvae": [2.0, 2.0]}}
    about = {"split": "combo", "fold": 1, "seeds": [0, 1], "models": {"dvae": "…"}}
    theirs = {"about": about, "notes": ["dvae: 100 epochs"], "scores": {"values": values}}
    theirs["scores"]["groups"] = ours[1]["scores"]["groups"]
    lines = page._published(ours, [theirs])
    assert "on the 2 groups of fold 1, all categories, seed 0, 1" in lines[0]
    assert "| dvae | 0.600 | +0.050 [+0.000, +0.100] | too few | 2.000 | +0.000 [" in lines[3]
    assert "- dvae: 100 epochs" in lines
    theirs["scores"]["groups"] = ours[0]["scores"]["groups"]
    assert page._published(ours, [theirs]) == ["- dvae: 100 epochs", ""]
    refused = theirs | {"scores": None, "notes": ["dvae: not trained, no cells"]}
    assert page._published(ours, [refused]) == ["- dvae: not trained, no cells", ""]
    assert page._published(ours, []) == []


def fold(number: int, pearson: list, l2: list) -> dict:
    """A stored fold of two groups, with ``additive`` at 0.5 and 2 everywhere."""
    groups = [["screen", "c", f"P{number}", "combo_seen2"], ["screen", "c", f"Q{number}", "combo_seen2"]]
    values = {"pearson_delta": {"additive": [0.5, 0.5], "tadvae": pearson}}
    values["l2"] = {"additive": [2.0, 2.0], "tadvae": l2}
    about = {"split": "combo", "fold": number}
    return {"about": about, "scores": {"groups": groups, "values": values}}


@pytest.mark.parametrize(("n_alone", "worse", "level"), [(3, "worse", "level"), (1, "too few", "too few")])
def test_verdicts_and_screens_together(results, monkeypatch, n_alone, worse, level):
    page, studies = importlib.import_module("results_page"), importlib.import_module("studies")
    both = studies.Study("both", [], {"combo": studies.Split("kind: combo", 2)})
    alone = studies.Study("alone", [], both.splits, part_of="both")
    monkeypatch.setattr(page, "STUDIES", {"both": both, "alone": alone})
    stored = {
        "both": [
            fold(0, [0.7, 0.8], [1.0, 3.0]),
            fold(1, [0.6, 0.7], [3.0, 1.0]),
            fold(2, [0.7, 0.7], [1.0, 3.0]),
        ],
        "alone": [
            fold(0, [0.8, 0.9], [1.0, 3.0]),
            fold(1, [0.7, 0.8], [3.0, 1.0]),
            fold(2, [0.8, 0.8], [1.0, 3.0]),
        ][:n_alone],
    }
    (row,) = [line for line in page._summary(stored) if line.startswith("| both, combo: combo_seen2 | 6 |")]
    assert row.count("additive") == 2
    assert "| +0.2000 [" in row
    assert row.index("**better**") < row.index("| level |")
    (row,) = [line for line in page._together(stored) if line.startswith(f"| alone, combo | {2 * n_alone} |")]
    assert f"| -0.1000 [-0.1000, -0.1000] | {worse} | +0.0000 [+0.0000, +0.0000] | {level} |" in row


def test_a_part_holds_out_what_the_whole_does(results, convert_here, tmp_path):
    spec = tmp_path / "screens" / "spec.yaml"
    whole = convert_here(spec)
    content = yaml.safe_load(spec.read_text())
    content["datasets"] = content["datasets"][:1]
    content["datasets"][0]["path"] = str(tmp_path / "screens" / content["datasets"][0]["path"])
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(content))
    part = convert_here(tmp_path / "one.yaml", "one")
    held = "split={kind: combo, folds: 4, fold: 1}"
    expected = split_groups(whole, ExperimentConfig.load(None, [held]).split)
    found = split_groups(part, ExperimentConfig.load(None, [results.same_groups(whole, held, part)]).split)
    name = content["datasets"][0]["name"]
    expected = expected[(expected["part"] == "test") & (expected["dataset_name"] == name)]
    found = found[found["part"] == "test"]
    assert len(found) > 0
    assert set(found["perturbation_name"]) == set(expected["perturbation_name"])


def test_the_page_opens_with_what_is_stored(results, tmp_path):
    """Percent of the baseline's L2, the verdict of its interval, and what the figure shows."""
    opening = importlib.import_module("results_opening")
    minus = {"mean": -2.0, "low": -3.0, "high": -1.0}
    known = {"l2": {"mean": 38.0, "minus_context_ridge": minus}}
    scores = {"context_ridge": {"l2": {"mean": 40.0}}, "regression": known, "mean": {"l2": {"mean": 50.0}}}
    (tmp_path / "contexts").mkdir()
    stored = {"about": {"seed": 0}, "drugs, t": scores}
    (tmp_path / "contexts" / "known_drugs.json").write_text(json.dumps(stored))
    rows = [opening.relative("doubles", {"mean": 0.0, "low": -1.0, "high": 1.0}, 10.0)]
    page = "\n".join(opening.opening(tmp_path, tmp_path / "results.md", rows))
    assert "best baseline in 1 of 2 comparisons, level in 1 and larger in 0" in page
    assert "- **Smaller**: a known drug in another cell type -5.0%." in page
    assert "- **Level**: doubles +0.0%." in page
    assert "**Larger**" not in page
    assert "t 38.0 against 50.0" in page
    assert "(images/results.svg)" in page
    svg = (tmp_path / "images" / "results.svg").read_text()
    assert svg.count('class="better"') == svg.count('class="level"') == 1


def test_structure_is_run_once(results, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "STRUCTURE", {"a/b.json": ["script.py", "--json"], "c.json": ["other.py"]})
    (tmp_path / "c.json").write_text("{}")
    commands = []
    monkeypatch.setattr(results.subprocess, "run", lambda command, check: commands.append(command[2:]))
    results.run_structure(tmp_path)
    assert commands == [["--json", str(tmp_path / "a/b.json")]]
