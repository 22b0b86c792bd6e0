"""The paper's table: its page is what the stored trials say, and replicability is what it says it is."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def table(monkeypatch):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module("paper_table")
    for name in set(sys.modules) - before:
        if str(ROOT / "benchmarks") in str(getattr(sys.modules[name], "__file__", "")):
            sys.modules.pop(name)


def test_the_page_shows_the_stored_trials(table, monkeypatch, tmp_path):
    monkeypatch.setattr(table, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(sys, "argv", ["paper_table.py"])
    table.main()
    assert (tmp_path / "page.md").read_text() == (ROOT / "docs" / "paper-table.md").read_text()


def test_replicability_is_the_least_of_all_pairs(table):
    rng = np.random.default_rng(0)
    first = pd.DataFrame(rng.normal(size=(50, 3)), columns=["a", "b", "c"])
    opposite = first.assign(a=-first["a"])
    assert table.replicability([first, first * 2 + 1]) == pytest.approx(1.0)
    assert table.replicability([first, first, opposite]) == pytest.approx(1 / 3)
    assert table.replicability([first, opposite.drop(columns="a")]) == pytest.approx(1.0)
    assert table.replicability([first, first.assign(a=0.0, b=1.0)]) == pytest.approx(1 / 3)
    own = pd.DataFrame(rng.normal(size=(50, 2)), columns=["a", "b"])
    other = pd.DataFrame(rng.normal(size=(50, 2)), columns=["a", "b"])
    expected = np.mean([np.corrcoef(own[name], other[name])[0, 1] for name in "ab"])
    assert table.replicability([own, other]) == pytest.approx(expected)
    assert np.isnan(table.replicability([first]))
