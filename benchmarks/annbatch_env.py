"""Annbatch for ``loader.py``: it needs Python 3.12, so it gets its own environment and process.

Without torch: the torch for 3.12 on PyPI is the CUDA build (several GB). Its batches stay scipy CSR, so
they are not copied into tensors as those of the other loaders are.
"""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

REQUIREMENT = "annbatch[zarrs]==0.3.1"
WORK = Path(__file__).with_name("annbatch_run.py")


def annbatch_rate(
    python: str | None, path: Path, folder: Path, rounds: int
) -> tuple[dict[str, Any] | None, str | None]:
    """Fields of ``loader.Rate`` of annbatch's best round, or the reason why there are none."""
    python = python or shutil.which("python3.12") or shutil.which("python3.13")
    if python is None or shutil.which(python) is None:
        return None, "no Python 3.12 here (--python312)"
    environment = folder / "annbatch-env"
    inside = environment / "bin" / "python"
    try:
        if not (environment / "installed").exists():
            subprocess.run([python, "-m", "venv", "--clear", str(environment)], check=True)
            command = [str(inside), "-m", "pip", "install", "--quiet", REQUIREMENT]
            subprocess.run(command, check=True, capture_output=True, text=True)
            (environment / "installed").touch()
        command = [str(inside), str(WORK), str(path), str(folder / f"{path.stem}.zarr"), str(rounds)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        last = (str(error.stderr or "").strip().splitlines() or ["?"])[-1]
        return None, f"its environment or its run failed: {last[:160]}"
    return json.loads(done.stdout.splitlines()[-1]), None
