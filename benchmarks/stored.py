"""Results that are made once: a JSON file says what it is about, and stays while that does not change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def store_once(
    place: Path, about: dict[str, Any], find: Callable[[], dict[str, Any]], indent: int | None = None
) -> None:
    """Write what ``find`` returns, unless the file is there with the same ``about`` and without an error."""
    if place.exists():
        stored = json.loads(place.read_text())
        if stored["about"] == about and "error" not in stored:
            print(f"{place}: already there", flush=True)
            return
    found = find()
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(json.dumps({"about": about} | found, indent=indent) + "\n")
    print(f"{place}: written", flush=True)
