"""The log of a run as it lies on disk: JSON lines, in pieces named by their first step."""

import json
from typing import Any

from tadvae.base.filesystem import Location


def read_log_piece(place: Location) -> list[dict[str, Any]]:
    """Records of one ``.jsonl`` of the log."""
    return [json.loads(line) for line in place.read_text().splitlines()]


def read_steps(run: Location) -> list[dict[str, Any]]:
    """Records of a run's steps, in their order."""
    log = run / "log"
    pieces = sorted(name for name in log.names() if name.startswith("steps-"))
    return [record for name in pieces for record in read_log_piece(log / name)]
