"""Shared parts of the speed benchmarks: options, a scratch folder, figures and their aims as JSON."""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # read when torch and numpy are imported; figures are by core


class Claims:
    """Figures of one script: aims with 'met' or 'not met', tables, and remarks.

    Parameters
    ----------
    name
        Name of the JSON file.
    about
        What is measured and how, shown on the page.
    """

    def __init__(self, name: str, about: str) -> None:
        self.found: dict[str, Any] = {"name": name, "about": about, "aims": [], "tables": [], "notes": []}
        self.found["figures"] = {}
        self._begun = time.perf_counter()
        self._load = os.getloadavg()[0]

    def aim(
        self, what: str, value: float, *, at_least: float | None = None, at_most: float | None = None
    ) -> None:
        """A figure that has an aim."""
        met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
        parts = [
            f"≥ {at_least:g}" if at_least is not None else "",
            f"≤ {at_most:g}" if at_most is not None else "",
        ]
        aim = " and ".join(part for part in parts if part)
        self.found["aims"].append({"what": what, "value": value, "aim": aim, "met": bool(met)})
        print(f"{what}: {value:.3g} (aim {aim}): {'met' if met else 'not met'}", flush=True)

    def not_run(self, what: str, aim: str, why: str) -> None:
        """An aim that could not be measured here."""
        self.found["aims"].append({"what": what, "value": None, "aim": aim, "met": None, "why": why})
        print(f"{what} (aim {aim}): not run: {why}", flush=True)

    def table(self, title: str, rows: list[dict[str, Any]]) -> None:
        """A table: rows with the same columns."""
        self.found["tables"].append({"title": title, "rows": rows})
        print(title)
        for row in rows:
            print("  " + "  ".join(f"{key} {show(value)}" for key, value in row.items()), flush=True)

    def figure(self, name: str, value: float) -> None:
        """A figure that other scripts read (``scale.py``)."""
        self.found["figures"][name] = value
        print(f"{name}: {show(value)}", flush=True)

    def note(self, text: str) -> None:
        """A remark for the page, such as a bottleneck, or what a figure does not cover."""
        self.found["notes"].append(text)
        print(text, flush=True)

    def finish(self, options: argparse.Namespace, *, timed: bool = True) -> None:
        """Write the JSON, if asked for; ``timed`` is False for figures that do not depend on other work."""
        self.found["machine"] = (
            f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
        )
        load = max(self._load, os.getloadavg()[0])
        if timed and load > 1.5 * (os.cpu_count() or 1):
            self.note(
                f"The machine was busy with other work (load average {load:.1f} on {os.cpu_count()} cores): "
                "CPU seconds, memory and ratios compare with other runs, seconds do not."
            )
        self.found["quick"] = bool(options.quick)
        self.found["seconds"] = time.perf_counter() - self._begun
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(self.found, indent=1, ensure_ascii=False) + "\n")


def show(value: Any) -> str:
    """A figure as the page and the terminal show it."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def parse(
    about: str | None, more: Callable[[argparse.ArgumentParser], None] | None = None
) -> argparse.Namespace:
    """Read the options that all scripts have."""
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--folder", type=Path, help="screens and stores are made, or found, here and stay")
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that it runs")
    if more is not None:
        more(parser)
    options = parser.parse_args()
    if sys.stdout.encoding.lower() != "utf-8":
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    return options


@contextmanager
def scratch(options: argparse.Namespace) -> Iterator[Path]:
    """The folder of ``--folder``, or a temporary one that is deleted."""
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        yield options.folder.absolute()
        return
    folder = Path(tempfile.mkdtemp(prefix="tadvae-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def about(doc: str | None) -> str:
    """A script's docstring without its command line."""
    return (doc or "").split("\n    python ")[0].strip()
