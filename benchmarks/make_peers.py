"""Run programs of others on our data, score them with our metrics, write docs/peers.md: ``make peers``.

Every program has one file ``benchmarks/peers/run_NAME.py`` and an environment of its own, installed when it
is first needed (``build/peers``, several GB in all). Its scores are one JSON file in
``benchmarks/results/peers``; what is stored is not done again. A program that cannot be installed or fails is
stored with its error::

    python benchmarks/make_peers.py --peer decoupler
    python benchmarks/make_peers.py --only-write
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peers import pathway_tests, prediction_tests
from peers.arithmetic import arithmetic_scores
from peers.environment import Peer, PeerError, peers, python_of, run, run_checks, run_script, versions
from peers.interchange import read_back, write_files
from peers.interchange_checks import PACKAGES
from peers.page import decision, write_page
from peers.pathway_case import AGAIN
from peers.pathways_of_tadvae import TIMED, target_scores
from peers.summary import write_readme
from stored import store_once
from synthetic import screen

HERE = Path(__file__).parent
OWN = HERE / "peers"
LONGEST = {"pathways": 3600.0, "prediction": 3600.0, "loading": 900.0}
"""Seconds of wall time after which a program's run on one case is stopped, by job."""
CELLS, TURNS = 64_000, 5
"""Cells that loaders read, and how often; a turn before, which prepares and compiles, does not count."""


def of_pathways(peer: Peer, work: Path, environments: Path) -> dict[str, Any]:
    """Scores of a program by method and case, and the errors of methods that failed."""
    cases = pathway_tests.write_cases(work / "pathways", peer.cases)
    python = python_of(peer, environments)
    scores: dict[str, dict[str, dict[str, float]]] = {}
    errors: dict[str, dict[str, str]] = {}
    took: dict[str, dict[str, dict[str, float]]] = {}
    replicability: dict[str, dict[str, dict[str, float]]] = {}
    for case in cases:
        out = work / "out" / peer.name / case.name
        run_once(peer, python, case, out)
        for method in sorted(each for each in out.iterdir() if each.is_dir() and any(each.iterdir())):
            failed, first = method / "error.txt", method.with_name(method.name.removesuffix(AGAIN))
            if first != method and not failed.exists():
                again = pathway_tests.replicability_of(case, first, method)
                replicability.setdefault(first.name, {})[case.name] = _short(again)
            elif failed.exists():
                errors.setdefault(method.name, {})[case.name] = " ".join(failed.read_text().split())[:200]
            else:
                found = pathway_tests.score(case, pathway_tests.reader(method))
                scores.setdefault(method.name, {})[case.name] = _short(found)
                took.setdefault(method.name, {})[case.name] = _short(pathway_tests.took(method))
    about = {"versions": _named(versions(python), peer), "scores": scores, "errors": errors}
    return about | {"took": took, "replicability": replicability}


def run_once(peer: Peer, python: Path, case: Path, out: Path) -> None:
    """Run a program on a case, unless it has done so with the same requirements."""
    mark, asked = out / "done.json", list(peer.requirements)
    if not mark.exists() or json.loads(mark.read_text()) != asked:
        run(peer, python, case, out, LONGEST[peer.job])
        mark.write_text(json.dumps(asked))


def of_prediction(peer: Peer, work: Path, environments: Path) -> dict[str, Any]:
    """Scores of a program by case and condition, and what its trainings took."""
    cases = prediction_tests.write_cases(work / "prediction", peer.cases)
    python = python_of(peer, environments)
    scores: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for case in cases:
        out = work / "out" / peer.name / case.name
        place = out / "prediction.npz"
        run_once(peer, python, case, out)
        scores[case.name] = prediction_tests.score(case, place)
        training[case.name] = prediction_tests.training_of(place)
        print(f"{peer.name}, {case.name}: {scores[case.name]} {training[case.name]}", flush=True)
    return {"versions": _named(versions(python), peer), "scores": scores, "training": training}


def of_loading(peer: Peer, work: Path, environments: Path) -> dict[str, Any]:
    """Passes of a program over the cells, in turns with ours."""
    case = screen_of(work / "loading")
    python, out = python_of(peer, environments), work / "out" / peer.name / "loading"
    mine = work / "out" / "tadvae" / "loading"
    passes: dict[str, list[dict[str, float]]] = {peer.name: [], "tadvae": []}
    for turn in range(TURNS + 1):
        run(peer, python, case, out, LONGEST[peer.job])
        run_script(Path(sys.executable), OWN / "loading_of_tadvae.py", case, mine, LONGEST[peer.job])
        for name, place in ((peer.name, out), ("tadvae", mine)):
            found = _short(json.loads((place / "pass.json").read_text()))
            print(turn, name, found, flush=True)
            passes[name] += [found] if turn else []
    return {"versions": _named(versions(python), peer), "passes": passes}


def screen_of(folder: Path) -> Path:
    """Case of loading: 10x PBMC, repeated, as a file compressed by gzip as its source is."""
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / "cells.h5ad"
    if not place.exists():
        screen(folder, "pbmc", CELLS).rename(place)
    return folder


def ours_of_prediction(work: Path) -> dict[str, Any]:
    """Our own model on every case of prediction, in a process of its own as the programs of others."""
    scores, training = {}, {}
    for case in prediction_tests.write_cases(work / "prediction"):
        out = work / "out" / "tadvae" / case.name
        if not (out / "prediction.npz").exists():
            script = OWN / "prediction_of_tadvae.py"
            run_script(Path(sys.executable), script, case, out, LONGEST["prediction"])
        scores[case.name] = prediction_tests.score(case, out / "prediction.npz")
        training[case.name] = prediction_tests.training_of(out / "prediction.npz")
        print(f"tadvae, {case.name}: {scores[case.name]} {training[case.name]}", flush=True)
    return {"scores": scores, "training": training}


def interchange(work: Path, environments: Path) -> dict[str, Any]:
    """Whether what we write is read by programs of others, each in its environment, by program."""
    folder = write_files(work / "interchange")
    known = {peer.name: peer for job in JOBS for peer in peers(job)}
    found: dict[str, Any] = {}
    for name in PACKAGES:
        try:
            python = python_of(known[name], environments)
            found[name] = json.loads(run_checks(python, OWN / "interchange_checks.py", name, folder))
        except PeerError as error:
            found[name] = {"error": str(error)}
        print(name, found[name], flush=True)
    found["tadvae"] = {"checks": read_back(folder)}
    return {"programs": found}


def ours(work: Path) -> dict[str, Any]:
    """Scores of our own on the cases of ``targets``, and times; other scores are stored already."""
    pathway_tests.write_cases(work / "pathways")
    out = work / "out" / "tadvae" / TIMED
    run_script(Path(sys.executable), OWN / "pathways_of_tadvae.py", work / "pathways" / TIMED, out, None)
    took = {"agreement": {TIMED: _short(pathway_tests.took(out / "agreement"))}}
    return {"scores": target_scores(work / "pathways", _short), "took": took}


def _short(scores: dict[str, float]) -> dict[str, float]:
    return {key: float(f"{value:.6g}") for key, value in scores.items()}


def _named(found: dict[str, str], peer: Peer) -> dict[str, str]:
    """Versions of what a program asks for."""
    known = {name.lower().replace("_", "-"): version for name, version in found.items()}
    names = [each.split("==")[0].split("[")[0].lower().replace("_", "-") for each in peer.requirements]
    return {name: known[name] for name in names if name in known}


JOBS: dict[str, Callable[[Peer, Path, Path], dict[str, Any]]] = {
    "pathways": of_pathways,
    "prediction": of_prediction,
    "loading": of_loading,
}


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peer",
        action="append",
        help="only this program (or tadvae, tadvae-prediction, interchange, arithmetic); may be repeated",
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "peers")
    parser.add_argument("--work", type=Path, default=HERE / "work" / "peers")
    parser.add_argument("--environments", type=Path, default=HERE.parent / "build" / "peers")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "peers.md")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md")
    parser.add_argument("--only-write", action="store_true", help="write the page from what is stored")
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    for place in (arguments.out, arguments.work):
        place.mkdir(parents=True, exist_ok=True)
    wanted = [] if arguments.only_write else [peer for job in JOBS for peer in peers(job)]
    for peer in wanted:
        if arguments.peer and peer.name not in arguments.peer:
            continue
        about = {"peer": peer.name, "requirements": list(peer.requirements), "python": peer.python}
        about |= {} if peer.cases == ("",) else {"cases": list(peer.cases)}
        store(
            arguments.out / f"{peer.job}-{peer.name}.json",
            about,
            lambda peer=peer: JOBS[peer.job](peer, arguments.work, arguments.environments),
        )
    if not arguments.only_write and (not arguments.peer or "tadvae" in arguments.peer):
        store(arguments.out / "pathways-tadvae.json", {"peer": "tadvae"}, lambda: ours(arguments.work))
    if not arguments.only_write and (not arguments.peer or "tadvae-prediction" in arguments.peer):
        place = arguments.out / "prediction-tadvae.json"
        store(place, {"peer": "tadvae"}, lambda: ours_of_prediction(arguments.work))
    if not arguments.only_write and (not arguments.peer or "interchange" in arguments.peer):
        place = arguments.out / "interchange.json"
        about = {"packages": {name: list(each) for name, each in PACKAGES.items()}}
        store(place, about, lambda: interchange(arguments.work, arguments.environments))
    if not arguments.only_write and (not arguments.peer or "arithmetic" in arguments.peer):
        store(
            arguments.out / "pathways-arithmetic.json",
            {"peer": "arithmetic"},
            lambda: {
                "scores": arithmetic_scores(pathway_tests.write_cases(arguments.work / "pathways"), _short)
            },
        )
    write_page(arguments.out, arguments.page)
    write_readme(arguments.readme, decision(arguments.out))
    print(f"{arguments.page}: written")


def store(place: Path, about: dict[str, Any], find: Callable[[], dict[str, Any]]) -> None:
    """Find and store what is not stored yet; an error is stored, and tried again by the next call."""

    def found() -> dict[str, Any]:
        try:
            return find()
        except PeerError as error:
            return {"error": str(error)}

    store_once(place, about, found, indent=1)


if __name__ == "__main__":
    main()
