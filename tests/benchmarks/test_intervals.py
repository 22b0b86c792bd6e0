"""The stored coverage of 90% intervals: its summary follows from its groups, and it is what was promised."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
STORED = sorted((BENCHMARKS / "results").glob("intervals_*.json"))


@pytest.fixture
def intervals(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("intervals")
    for name in ("intervals", "studies"):
        sys.modules.pop(name, None)


def test_the_real_screen_is_stored():
    assert any(place.stem.startswith("intervals_carpool") for place in STORED)


@pytest.mark.parametrize("place", STORED, ids=lambda place: place.stem)
def test_stored_coverage(intervals, place):
    found = json.loads(place.read_text())
    assert found["summary"] == json.loads(json.dumps(intervals.summarise(found["folds"])))
    groups = [
        (row["dataset"], row["context"], row["perturbation"])
        for fold in found["folds"]
        for row in fold["groups"]
    ]
    assert len(groups) == len(set(groups)) == found["summary"]["n"]  # every double is held out once
    assert len(found["folds"]) == found["about"]["folds"]
    assert 0.85 <= found["summary"]["genes_inside"]["mean"] <= 0.95
