"""What a GPU does with the network: ceilings, parity with float64, waits, speed, ranks, and resuming.

``scripts/gpu_check.sh`` runs every step in a process of its own, with a time limit. Needs neither Ray nor a
store: a batch is invented, with the sizes of a screen (20,000 genes, 1,500 tokens per cell). Rows are written
as soon as they are known. The steps are in ``gpu_checks.py`` (what has to hold) and ``gpu_speed.py``.

    python benchmarks/gpu.py STEP --out FOLDER [--device cuda] [--toy]
    python benchmarks/gpu.py table --out FOLDER [--results FOLDER]
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_batch import TOY, Sizes
from gpu_checks import parity, ranks, resume, waits
from gpu_rows import Rows
from gpu_speed import kernels, machine, speed

STEPS: dict[str, Callable[[Rows, torch.device, Sizes], None]] = {
    "machine": machine, "parity": parity, "waits": waits, "speed": speed, "kernels": kernels,
    "ranks": ranks, "resume": resume,
}  # fmt: skip


def as_expected(row: dict[str, Any]) -> bool:
    """Whether a row is neither an error nor out of its bounds; that some variants wait is known."""
    waits_as_known = row["what"] == "waits" and row["expected"] == "some"
    return ("error" not in row or waits_as_known) and row.get("within", True)


def table(out: Path, results: Path | None) -> dict[str, Any]:
    """All rows that were written, with the card's name; stored only if they come from a GPU."""
    found: dict[str, Any] = {"steps": {}, "failed": []}
    for step in STEPS:
        file, ended = out / f"{step}.jsonl", out / f"{step}.exit"
        lines = file.read_text().splitlines() if file.exists() else []
        found["steps"][step] = [json.loads(line) for line in lines]
        code = ended.read_text().strip() if ended.exists() else "not run"
        if code != "0":
            found["failed"].append({"step": step, "exit": code})
        found["failed"] += [row for row in found["steps"][step] if not as_expected(row)]
    machine_rows = found["steps"]["machine"]
    found["card"] = machine_rows[0]["name"] if machine_rows else "unknown"
    found["torch"] = machine_rows[0]["torch"] if machine_rows else "unknown"
    (out / "table.json").write_text(json.dumps(found, indent=1) + "\n")
    if results is not None and found["card"] not in ("CPU", "unknown"):
        results.mkdir(parents=True, exist_ok=True)
        name = "-".join(found["card"].lower().split())
        (results / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("step", choices=[*STEPS, "table"])
    parser.add_argument("--out", type=Path, required=True, help="folder for the rows")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="toy sizes, to see that it runs")
    parser.add_argument("--results", type=Path, help="where the table of a GPU is stored")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.step == "table":
        found = table(options.out, options.results)
        n_rows = sum(map(len, found["steps"].values()))
        print(f"{found['card']}: {n_rows} rows, failed: {found['failed'] or 'none'}")
        return 1 if found["failed"] else 0
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    rows = Rows(options.out / f"{options.step}.jsonl")
    STEPS[options.step](rows, torch.device(options.device), TOY if options.toy else Sizes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
