"""``make peers`` without any program: environments, exchange files, scores, storing, and the page."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics import roc_auc_score

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
OURS = ("peers", "make_peers", "studies", "panel_transfer", "results_opening", "replicability", "synthetic")


@pytest.fixture(scope="module")
def peers():
    """Modules of the comparison by name."""
    sys.path.insert(0, str(BENCHMARKS))
    names = (
        "environment", "exchange", "loading_case", "page", "pathway_case", "pathway_tests",
        "prediction_page", "summary",
    )  # fmt: skip
    yield {name: importlib.import_module(f"peers.{name}") for name in names} | {
        "make_peers": importlib.import_module("make_peers")
    }
    sys.path.remove(str(BENCHMARKS))
    for name in [each for each in sys.modules if each.split(".")[0] in OURS]:
        sys.modules.pop(name)


def test_every_program_names_pinned_requirements_a_python_and_a_job(peers):
    environment = peers["environment"]
    scripts = sorted((BENCHMARKS / "peers").glob("run_*.py"))
    assert len(scripts) >= 8
    for script in scripts:
        peer = environment.Peer.of(script)
        assert peer.script == script
        assert peer.python in ("3.8", "3.10", "3.11", "3.12")
        assert peer.job in {*peers["make_peers"].JOBS, "fixture"}
        assert all("==" in each for each in peer.requirements)
    for job in peers["make_peers"].JOBS:
        assert len(environment.peers(job)) >= 3, job


def test_a_file_without_a_head_is_refused(peers, tmp_path):
    (tmp_path / "run_x.py").write_text("print()\n")
    with pytest.raises(ValueError, match="PEP 723"):
        peers["environment"].Peer.of(tmp_path / "run_x.py")


def test_what_cannot_run_is_an_error_with_its_reason(peers, tmp_path):
    environment = peers["environment"]
    with pytest.raises(environment.PeerError, match="no Python 9"):
        environment.python_of(environment.Peer("decoupler", ("x==1",), "9.9", "pathways"), tmp_path)
    peer = environment.Peer("decoupler", ("x==1",), "3.11", "pathways")  # its package is not in this Python
    with pytest.raises(environment.PeerError, match="Error"):
        environment.run(peer, Path(sys.executable), tmp_path / "none", tmp_path / "out", 100)


def test_a_program_leaves_its_logs_beside_its_results(peers, tmp_path, monkeypatch):
    """Also where the folders are given relative to that of the caller."""
    (tmp_path / "run_x.py").write_text("import sys; open('x.log', 'w').write(sys.argv[1])\n")
    monkeypatch.chdir(tmp_path)
    script, case, out = Path("run_x.py"), Path("case"), Path("out")
    peers["environment"].run_script(Path(sys.executable), script, case, out, 100)
    assert (tmp_path / "out" / "x.log").read_text() == str(tmp_path / "case")
    assert sorted(place.name for place in tmp_path.iterdir()) == ["out", "run_x.py"]


def test_what_is_stored_is_not_done_again_but_an_error_is(peers, tmp_path):
    store, error = peers["make_peers"].store, peers["environment"].PeerError
    place, calls = tmp_path / "x.json", []

    def fail():
        calls.append("fail")
        raise error("no wheel")

    def find():
        calls.append("find")
        return {"scores": {}}

    for each in (fail, find, find):
        store(place, {"peer": "x"}, each)
    assert calls == ["fail", "find"]
    assert "error" not in json.loads(place.read_text())
    store(place, {"peer": "x", "python": "3.12"}, find)
    assert calls[-1:] == ["find"]
    assert len(calls) == 3


@given(st.integers(0, 2**32 - 1))
def test_the_area_under_the_curve_is_that_of_scikit_learn(peers, seed):
    rng = np.random.default_rng(seed)
    score, positive = rng.integers(0, 5, 20), np.arange(20) < rng.integers(1, 20)
    assert peers["pathway_tests"].roc_area(score, positive) == pytest.approx(roc_auc_score(positive, score))


def test_smoothing_is_that_of_activities(peers):
    """But for each cell's mean over genes, which others subtract themselves, or keep."""
    from tadvae.cells.ragged import Cells
    from tadvae.model.encode import project
    from tadvae.model.new_cells import NewCells

    X = sparse.random(30, 12, 0.6, "csr", np.float32, np.random.default_rng(0))
    X.sort_indices()
    cells = Cells(X.indices.astype(np.int64), X.data, X.indptr.astype(np.int64), np.full(30, np.nan))
    new = NewCells(cells, np.arange(12), np.ones(1, bool), 12, [f"G{g}" for g in range(12)])
    found = project(new, 4)
    smoothed = peers["exchange"].smoothed(X, 4)
    expected = smoothed - smoothed.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(found.mean + found.scores @ found.axes, expected, atol=1e-5)


def test_activities_come_back_by_pathway(peers, tmp_path):
    np.savez_compressed(tmp_path / "x.npz", activity=np.eye(2), pathways=np.array(["a", "b"]))
    found = peers["exchange"].read_activity(tmp_path / "x.npz")
    assert found["b"].tolist() == [0.0, 1.0]


def test_a_pathway_that_holds_the_target_and_moves_scores_one(peers, tmp_path):
    """Four control cells and two perturbed ones; only the pathway of the target moves."""
    case = tmp_path / "case"
    case.mkdir()
    (case / "true.gmt").write_text("own\tx\tT\tA\nother\tx\tA\tB\n")
    about = {"test": "targets", "study": "s", "kind": "true", "perturbed": {"T": 2}, "pathways": "true.gmt"}
    (case / "case.json").write_text(json.dumps(about))
    activity = np.array([[3.0, 0.0], [3.1, 0.1], [0.0, 0.0], [0.1, 0.1], [0.0, 0.1], [0.1, 0.0]])
    np.savez_compressed(tmp_path / "T.npz", activity=activity, pathways=np.array(["own", "other"]))
    tests = peers["pathway_tests"]
    assert tests.score(case, tests.reader(tmp_path)) == {"T": 1.0}


def test_the_page_comes_from_what_is_stored(peers, tmp_path):
    results = tmp_path / "results"
    (results / "peers").mkdir(parents=True)
    (results / "truth.json").write_text((BENCHMARKS / "results" / "truth.json").read_text())
    variants = peers["pathway_tests"].VARIANTS
    scores = {"ulm": {f"truth-{seed}": dict.fromkeys(variants, 0.5 + seed / 10) for seed in range(2)}}
    scores["ulm"]["targets-datlinger-true"] = {"ENSG1": 0.25, "ENSG2": 0.75}
    for name, found in {
        "pathways-a": {"scores": scores, "errors": {"mlm": {"c": "it broke"}}, "versions": {"a": "1.0"}},
        "pathways-b": {"error": "no wheel"},
    }.items():
        about = {"peer": name[-1], "requirements": [f"{name[-1]}==1"], "python": "3.11"}
        (results / "peers" / f"{name}.json").write_text(json.dumps({"about": about} | found))
    peers["page"].write_page(results / "peers", tmp_path / "peers.md")
    text = (tmp_path / "peers.md").read_text()
    assert "| a, ulm | 0.550 (0.500 to 0.600) | 0.550 (0.500 to 0.600) |" in text
    assert "| a, ulm | 0.500 [" in text
    assert "- b (b==1): **not run**: no wheel" in text
    assert "- a, mlm: failed in 1 cases, such as c: it broke" in text
    assert "**tadvae, members**" in text


def test_the_stored_page_is_the_one_in_the_documentation(peers, tmp_path):
    peers["page"].write_page(BENCHMARKS / "results" / "peers", tmp_path / "peers.md")
    assert (tmp_path / "peers.md").read_text() == (ROOT / "docs" / "peers.md").read_text()


def test_what_the_page_says_of_targets_is_stored(peers):
    """Only expiMap has an interval above chance on both screens; on Norman no other method has."""
    above = {case: set() for case in ("targets-datlinger-true", "targets-norman_alone-true")}
    for place in (BENCHMARKS / "results" / "peers").glob("pathways-*.json"):
        for method, cases in json.loads(place.read_text()).get("scores", {}).items():
            for case, found in above.items():
                if case in cases and peers["page"].bootstrap_mean(list(cases[case].values())).low > 0.5:
                    found.add(method)
    assert above["targets-norman_alone-true"] == {"expiMap"}
    assert "expiMap" in above["targets-datlinger-true"]


def test_the_table_of_readme_is_the_one_of_the_stored_scores(peers, tmp_path):
    """It cannot drift: ``make peers PEERS=--only-write`` writes it."""
    place = tmp_path / "README.md"
    place.write_text((ROOT / "README.md").read_text())
    lines = peers["page"].decision(BENCHMARKS / "results" / "peers")
    assert 3 <= len(lines) - 2 <= 8
    starts = (
        "Norman",
        "Pathway activities: correlation",
        "Pathway activities: a cell",
        "Loading",
        "Training",
    )
    for start in starts:
        assert any(line.startswith(f"| {start}") for line in lines), start
    peers["summary"].write_readme(place, lines)
    assert place.read_text() == (ROOT / "README.md").read_text()


def test_every_loader_gives_log1p_of_counts_per_ten_thousand(peers):
    counts = sparse.csr_matrix(np.array([[1.0, 0, 3], [0, 0, 0], [0, 2, 0]]))
    ids, values, offsets = peers["loading_case"].normalised(counts)
    assert (ids.dtype, values.dtype, offsets.dtype) == (np.int64, np.float32, np.int64)
    np.testing.assert_allclose(values, np.log1p([2500.0, 7500.0, 10000.0]), rtol=1e-6)
    assert (ids.tolist(), offsets.tolist()) == ([0, 2, 1], [0, 2, 2, 3])


def test_the_better_figure_is_bold_and_comes_from_groups_that_both_predict(peers):
    test = peers["prediction_page"].prediction_tests.TESTS[0]
    case = test.cases[0]
    ours = {case: {"A+B": {"pearson_delta": 0.5, "l2": 1.0}, "B+C": {"pearson_delta": 0.9, "l2": 1.0}}}
    theirs = {case: {"B+A": {"pearson_delta": 0.6, "l2": 1.0}}}
    stored = {"prediction-tadvae": {"scores": ours}, "prediction-x": {"scores": theirs}}
    lines = peers["summary"].table(stored, {}, {})
    assert lines[2:] == [f"| {test.about}, 1 groups (Pearson-Δ) | 0.500 | **0.600 (x)** | 1 |"]
    rows = {("tadvae, a", "c"): [0.2, 0.4], ("x, m", "c"): [0.2, 0.2], ("x, n", "c"): [0.9]}
    assert peers["summary"]._best("job", rows, "c") == ["job", "**0.300**", "0.200 (x, m)", "1"]


def test_other_budgets_are_compared_over_the_groups_of_all(peers):
    """Speed counts where the machine was idle, in the shortest runs."""
    tests = peers["prediction_page"].prediction_tests
    usual, short = tests.TESTS[0].cases[0], tests.LONGER[0].cases[0]
    assert short == f"{usual}-30s"
    took = {"seconds": 30.0, "wall": 15.0, "cells": 3000.0, "epochs": 7.0}
    one, two = ({"pearson_delta": r, "l2": 1.0} for r in (0.5, 0.9))
    stored = {
        "tadvae": {"scores": {usual: {"A+B": two, "C+D": one}, short: {"A+B": one, "C+D": one}}},
        "x": {"scores": {usual: {"B+A": one}, short: {"B+A": one}}},
    }
    for each in stored.values():
        each["training"] = {usual: took, short: took}
    lines = peers["prediction_page"].longer(stored)[3:-1]
    assert [line.split(" | ")[1:] for line in lines] == [
        ["**tadvae, one model**", "1", "30", "7", "30", "200", "0.500", "1.000 |"],
        ["**tadvae, one model**", "1", "60", "7", "30", "", "0.900", "1.000 |"],
        ["x", "1", "30", "7", "30", "200", "0.500", "1.000 |"],
        ["x", "1", "60", "7", "30", "", "0.500", "1.000 |"],
    ]


def test_times_of_pathway_programs(peers, tmp_path):
    for name, seconds in (("a", 1.0), ("b", 3.0)):
        peers["pathway_case"].save(tmp_path / f"{name}.npz", pd.DataFrame({"P": [1.0]}), seconds, 2.0)
    took = peers["pathway_tests"].took(tmp_path)
    assert (took["seconds"], took["training"]) == (2.0, 2.0)
    assert took["peak"] > 1e6
    found = {"x": {"took": {"m": {"panels-0-true": took}}}, "old": {"scores": {}}}
    assert peers["page"]._took(found)[3] == f"| x, m | 2.00 | 2.0 | {took['peak'] / 2**30:.2f} |"


def test_loaders_are_compared_with_the_passes_of_ours_beside_them(peers):
    def turns(*cpu):
        each = {"cells": 10, "wall": 2.0, "tokens": 100, "first": 0.1, "bytes": 50, "peak": 2**30}
        return [each | {"cpu": one} for one in cpu]

    stored = {
        "loading-slow": {"passes": {"slow": turns(8.0, 8.0, 9.0), "tadvae": turns(1.0, 1.0, 1.0)}},
        "loading-near": {"passes": {"near": turns(5.0, 6.0, 9.0), "tadvae": turns(2.0, 4.0, 4.0)}},
    }
    assert peers["summary"].table(stored, {}, {})[2:] == [
        "| Loading: CPU µs per cell ↓ | **400000** | 600000 (near) | 2 |"
    ]
    lines = peers["page"].loading_page.table({name[8:]: each for name, each in stored.items()})
    assert lines[4] == "| near | 600000 | 2.25 (1.50 to 2.50) | 5 | 0.0 | 0.10 | 5 | 1.00 |"
    assert lines[5].startswith("| **tadvae** | 150000 | 1 | 5 |")
