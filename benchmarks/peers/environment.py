"""One environment per program, made when it is needed, from what the head of its file asks for.

A program's file ``run_NAME.py`` runs inside that environment and imports nothing of ours. Its head is inline
script metadata (PEP 723): the Python it needs and its pinned requirements.
"""

import json
import os
import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
_HEAD = re.compile(r"^# /// script\n((?:#.*\n)+?)# ///$", re.MULTILINE)
_LONGEST = 300  # characters of an error that are kept
_LIST = """import json
from importlib.metadata import distributions
print(json.dumps({each.metadata["Name"]: each.version for each in distributions()}))"""


@dataclass(frozen=True)
class Peer:
    """A program to compare with.

    Attributes
    ----------
    name
        Of its file: ``run_NAME.py``.
    requirements
        What pip installs; the first one is the program itself.
    python
        Minor version of the Python it needs, such as ``3.11``.
    job
        What it is compared in, such as ``pathways``.
    cases
        Beginnings of the names of the cases that it can do.
    """

    name: str
    requirements: tuple[str, ...]
    python: str
    job: str
    cases: tuple[str, ...] = ("",)

    @classmethod
    def of(cls, script: Path) -> "Peer":
        """Read the head of a program's file."""
        found = _HEAD.search(script.read_text())
        if found is None:
            raise ValueError(f"{script}: expected inline script metadata (PEP 723), found none.")
        head = tomllib.loads("".join(line[2:] + "\n" for line in found.group(1).splitlines()))
        tool = head["tool"]["tadvae-peer"]
        name, cases = script.stem.removeprefix("run_"), tuple(tool.get("cases", [""]))
        return cls(name, tuple(head["dependencies"]), tool["python"], tool["job"], cases)

    @property
    def script(self) -> Path:
        return HERE / f"run_{self.name}.py"


class PeerError(Exception):
    """Why a program has no figures."""


def peers(job: str) -> list[Peer]:
    """All programs of a job, by name."""
    found = [Peer.of(script) for script in sorted(HERE.glob("run_*.py"))]
    return [peer for peer in found if peer.job == job]


def python_of(peer: Peer, folder: Path) -> Path:
    """Python of the program's environment, installed if it is not there.

    Raises
    ------
    PeerError
        If there is no such Python, or pip fails; with pip's last line.
    """
    place = folder / peer.name
    inside, mark = place / "bin" / "python", place / "installed.json"
    asked = list(peer.requirements)
    if mark.exists() and json.loads(mark.read_text()) == asked:
        return inside
    python = shutil.which(f"python{peer.python}")
    if python is None:
        raise PeerError(f"no Python {peer.python} here")
    if uv := shutil.which("uv"):  # the same packages, and one copy on the disk of what environments share
        _run([uv, "venv", "--quiet", "--clear", "--python", python, str(place)], None)
        _run([uv, "pip", "install", "--quiet", "--python", str(inside), *asked], None)
    else:
        _run([python, "-m", "venv", "--clear", str(place)], None)
        _run([str(inside), "-m", "pip", "install", "--quiet", *asked], None)
    mark.write_text(json.dumps(asked))
    return inside


def versions(python: Path) -> dict[str, str]:
    """Version of every package of an environment."""
    done = subprocess.run([str(python), "-c", _LIST], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def run(peer: Peer, python: Path, case: Path, out: Path, limit: float) -> None:
    """Run a program on one case, at most ``limit`` seconds of wall time.

    Raises
    ------
    PeerError
        If it fails or takes longer.
    """
    run_script(python, peer.script, case, out, limit)


def run_script(python: Path, script: Path, case: Path, out: Path, limit: float | None) -> None:
    """Run a file of this folder on one case, with the threads that it asks for, or one.

    It runs in ``out``: some programs leave logs in the folder in which they run.
    """
    out.mkdir(parents=True, exist_ok=True)
    about = case / "case.json"
    threads = json.loads(about.read_text()).get("threads", 1) if about.exists() else 1
    command = [str(place.resolve()) for place in (script, case, out)]
    _run([str(python.absolute()), *command], limit, threads, out)


def run_checks(python: Path, script: Path, program: str, folder: Path) -> str:
    """The last line that the checks of one program print."""
    return _run([str(python), str(script), program, str(folder)], 900.0).splitlines()[-1]


def _run(command: list[str], limit: float | None, threads: int = 1, folder: Path | None = None) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    environment |= dict.fromkeys(names, str(threads))
    several = str(threads > 1).lower()
    flags = f"--xla_cpu_multi_thread_eigen={several} intra_op_parallelism_threads={threads}"
    environment["XLA_FLAGS"] = flags
    try:
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=limit, env=environment, cwd=folder
        )
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stderr or "").strip().splitlines() if line.strip()]
        said = [line for line in lines if "Error" in line or "ERROR" in line] or lines or ["no message"]
        raise PeerError(said[-1].strip()[:_LONGEST]) from error
    except subprocess.TimeoutExpired as error:
        raise PeerError(f"stopped after {limit:.0f} s") from error
    return done.stdout
