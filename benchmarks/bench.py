"""``make bench``: run every speed benchmark, store its JSON, write docs/benchmarks.md from what is stored.

python benchmarks/bench.py [--only NAME …] [--page-only] [--quick] [--results FOLDER] [--page FILE]
"""

import argparse
import json
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from claims import show

from pipelines.cluster.connection import ray_session

HERE = Path(__file__).parent
SCRIPTS = [
    "conversion", "memory", "loader", "train_step", "growth", "prediction", "embedding", "attention",
    "encoders", "sweeps", "scale",
]  # fmt: skip
"""Run in this order, because later scripts use files of earlier ones; ``scale`` reads their JSON."""
TITLES = {
    "conversion": "Conversion",
    "memory": "Memory",
    "loader": "Loader",
    "train_step": "Training step",
    "growth": "Growth",
    "prediction": "Prediction",
    "embedding": "Embedding",
    "attention": "Pathway attention",
    "encoders": "Encoder and unmasked attention",
    "sweeps": "Searching for settings",
    "scale": "Scale",
}


def run(name: str, folder: Path, results: Path, options: argparse.Namespace) -> bool:
    """Run one script; returns whether it succeeded."""
    print(f"== {name}", flush=True)
    command = [sys.executable, str(HERE / f"{name}.py"), "--json", str(results / f"{name}.json")]
    command += ["--folder", str(folder)] + (["--quick"] if options.quick else [])
    if name == "loader" and options.python312:
        command += ["--python312", options.python312]
    if name == "scale":
        command += ["--results", str(results), "--page", str(options.page.with_name("scale.md"))]
    start = time.perf_counter()
    if options.quick:
        well = run_here(command[1:])
    else:
        done = subprocess.run(
            command, stderr=subprocess.PIPE if not options.verbose else None, text=True, check=False
        )
        well = done.returncode == 0
        if not well:
            print((done.stderr or "")[-4000:], file=sys.stderr)
    print(f"   {time.perf_counter() - start:.0f} s", flush=True)
    return well


def run_here(words: list[str]) -> bool:
    """Run a script in this process, whose imports and Ray serve them all; whether it ended well."""
    before, sys.argv = sys.argv, words
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as ended:
        return not ended.code
    except Exception:  # noqa: BLE001 - the next script has its turn, as after a process that failed
        traceback.print_exc()
        return False
    finally:
        sys.argv = before
    return True


def page(found: list[dict[str, Any]], gpus: list[dict[str, Any]] | None = None) -> str:
    """The Markdown page, from stored figures; ``gpus`` are tables of ``scripts/gpu_check.sh``."""
    minutes = sum(each["seconds"] for each in found) / 60
    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench` from the JSON in `benchmarks/results/bench`; do not edit. Every ratio "
        "was measured in one run on the same data, in alternating rounds, of which the best counts. No test "
        "asserts a time.",
        "",
        f"Machine: {found[0]['machine']}. All scripts took {minutes:.1f} minutes.",
        "",
        "## Aims",
        "",
        "| benchmark | what | measured | aim | |",
        "|---|---|---|---|---|",
    ]
    for each in found:
        for aim in each["aims"]:
            word = {True: "met", False: "**not met**", None: f"not run: {aim.get('why', '')}"}[aim["met"]]
            value = "" if aim["value"] is None else show(float(aim["value"]))
            title = TITLES[each["name"]]
            lines.append(
                f"| [{title}](#{_anchor(title)}) | {aim['what']} | {value} | {aim['aim']} | {word} |"
            )
    for each in found:
        lines += ["", f"## {TITLES[each['name']]}", "", each["about"]]
        for table in each["tables"]:
            lines += _table(table["title"], table["rows"])
        if each["notes"]:
            lines += ["", *(f"- {note}" for note in each["notes"])]
    return "\n".join([*lines, *_gpu_section(gpus or [])]) + "\n"


def _table(title: str, rows: list[dict[str, Any]]) -> list[str]:
    """A table with the columns of all rows; what a row does not have is empty."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["", f"{title}:", "", "| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = ("" if row.get(name) is None else show(row[name]) for name in names)
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _gpu_section(gpus: list[dict[str, Any]]) -> list[str]:
    """What ``scripts/gpu_check.sh`` found on each card."""
    lines = ["", "## GPU", ""]
    if not gpus:
        return [
            *lines,
            "Not run: no GPU was available. `scripts/gpu_check.sh` measures it in 8 minutes on a machine "
            "with one GPU, without Ray or a network, and stores its table in `benchmarks/results/gpu`.",
        ]
    lines.append(
        "From `scripts/gpu_check.sh` on an invented batch: 8 bags of 64 cells of about 1,500 tokens, 20,000 "
        "genes, 500 pathways; parity, ranks and resuming at toy size."
    )
    for each in gpus:
        lines += ["", f"### {each['card']}, torch {each['torch']}"]
        for step, rows in each["steps"].items():
            lines += _table(step, rows) if rows else []
        for step in each["failed"]:
            lines += ["", f"- **{step['step']}** ended with exit code {step['exit']}."]
    return lines


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS)
    parser.add_argument("--page-only", action="store_true", help="write the page from what is stored")
    parser.add_argument("--quick", action="store_true", help="toy sizes and one process, to see that it runs")
    parser.add_argument(
        "--verbose", action="store_true", help="show what the scripts write to standard error"
    )
    parser.add_argument("--folder", type=Path, help="keep screens and stores here instead of deleting them")
    parser.add_argument("--python312", help="a Python of 3.12 or newer for annbatch")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "bench")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "benchmarks.md")
    options = parser.parse_args()
    failed = []
    if not options.page_only:
        options.results.mkdir(parents=True, exist_ok=True)
        folder = options.folder or Path(tempfile.mkdtemp(prefix="tadvae-bench-"))
        try:
            with ray_session(3) if options.quick else nullcontext():
                failed = [name for name in options.only if not run(name, folder, options.results, options)]
        finally:
            if options.folder is None:
                shutil.rmtree(folder, ignore_errors=True)
    places = [options.results / f"{name}.json" for name in SCRIPTS]
    found = [json.loads(place.read_text()) for place in places if place.exists()]
    stored = sorted((HERE / "results" / "gpu").glob("*.json"))
    options.page.write_text(page(found, [json.loads(file.read_text()) for file in stored]))
    unmet = sum(aim["met"] is False for each in found for aim in each["aims"])
    print(f"{options.page}: {sum(len(each['aims']) for each in found)} aims, {unmet} not met", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
