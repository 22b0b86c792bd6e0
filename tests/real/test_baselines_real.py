"""The baselines on the doubles of a real screen, as the benchmark computes them."""

import importlib.util
from pathlib import Path

import pytest


def test_additive_ridge_on_carpool(data):
    source = Path(__file__).resolve().parents[2] / "benchmarks" / "carpool_baselines.py"
    spec = importlib.util.spec_from_file_location("carpool_baselines", source)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    profiles = benchmark.read_profiles(data / benchmark.FILE)
    summary = benchmark.summarise(benchmark.cross_validate(profiles, seeds=[0]))
    additive, ridge = summary["additive"], summary["additive_ridge"]
    assert additive["pearson_delta"]["mean"] == pytest.approx(0.789, abs=0.001)
    assert ridge["pearson_delta"]["mean"] == pytest.approx(0.892, abs=0.002)
    assert ridge["l2"]["mean"] <= 0.56 * additive["l2"]["mean"]
    assert ridge["pearson_delta"]["minus_additive"]["low"] > 0.08
    for name in set(summary) - {"additive_ridge"}:
        assert summary[name]["pearson_delta"]["mean"] < ridge["pearson_delta"]["mean"] - 0.09
