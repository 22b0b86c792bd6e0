"""The command of sweeps, which ends the process, and what the runs of a sweep logged."""

import json
import os
from pathlib import Path

import pytest

from tune.cli import main

WITHOUT_A_CLUSTER = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
"""The environment of a process that shall start a Ray of its own."""


def log(run: Path) -> list[dict]:
    """Every step of a run, from its own log."""
    pieces = sorted((run / "log").glob("steps-*.jsonl"))
    return [json.loads(line) for piece in pieces for line in piece.read_text().splitlines()]


def main_exits(arguments: list[str], code: int = 0) -> None:
    """Run the command; it must end with this exit code."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert (ended.value.code or 0) == code
