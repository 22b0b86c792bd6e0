"""``make test``: all tests, in four parts that together hold each test once.

``cluster`` has a head and drivers as processes, ``ray`` one Ray in pytest's own process, and ``slow`` the
slow tests without Ray. ``fast`` is ``make fast``: the tests without Ray that take no more than seconds. Two
parts run at the same time: ``cluster`` often waits, for processes that start one after the other, and for Ray
to notice what it has lost. More at the same time are no faster on two cores, which then switch between
processes instead of working. Each part has a folder of its own for Ray's sockets, logs and the address of its
cluster. Its output goes to ``build/tests/PART.log``, which is printed when the part ends.

    python scripts/run_tests.py [--parts cluster ray slow fast] [--at-once 2] [--jobs 1] [-- PYTEST OPTIONS]

The last line sums up all parts as pytest does. The exit code is 0 if every part passed; Ctrl-C ends all
parts.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[1]
PARTS = {
    "cluster": ["-m", "cluster", "tests/cluster"],
    "ray": ["-m", "ray and not cluster"],
    "slow": ["-m", "slow and not ray and not cluster"],
    "fast": ["-m", "not ray and not slow and not cluster"],
}
"""What pytest is told to select, in the order in which the parts start: the longest first."""
NO_TESTS = 5
"""Exit code of pytest where nothing was selected."""


class Part:
    """One pytest of its own."""

    def __init__(self, name: str, jobs: int, options: list[str]) -> None:
        self.name = name
        self.log = ROOT / "build" / "tests" / f"{name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        # Ray's sockets lie here, and their paths must be short
        self.scratch = tempfile.mkdtemp(prefix="tadvae-", dir="/tmp" if Path("/tmp").is_dir() else None)
        environment = {**os.environ, "RAY_TMPDIR": self.scratch, "OMP_NUM_THREADS": "1"}
        # many processes start: each would compile our modules anew
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [sys.executable, "-m", "pytest", "-v", *PARTS[name], *options]
        command += ["-n", str(jobs), "--dist", "loadscope"] if name in ("fast", "slow") and jobs > 1 else []
        print(f"== {name}: started, see {self.log.relative_to(ROOT)}", flush=True)
        self.started, self.seconds = time.monotonic(), 0.0
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=out, stderr=out, start_new_session=True
            )

    def finish(self) -> Counter[str]:
        """Print its log and its counts, which are returned."""
        self.seconds = time.monotonic() - self.started
        text = self.log.read_text(errors="replace")
        print(text, flush=True)
        closing = [line for line in text.splitlines() if re.match(r"=+ .* in [\d.]+s", line)]
        counts = Counter[str]()
        summary = closing[-1].rpartition(" in ")[0] if closing else ""
        for number, what in re.findall(r"(\d+) ([a-z]+)", summary):
            counts[what.removesuffix("s") if what == "errors" else what] += int(number)
        if self.process.returncode not in (0, 1, NO_TESTS) and not counts["error"]:
            counts["error"] += 1  # it did not come to its closing line
        return counts

    def end(self) -> None:
        """End it as by Ctrl-C, where pytest ends what its fixtures started, and delete its scratch folder."""
        if self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGINT)
            try:
                self.process.wait(timeout=90)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)


def said(counts: Counter[str]) -> str:
    """``12 passed, 0 failed, 1 skipped``, and what else there was."""
    shown = {"passed": 0, "failed": 0, "skipped": 0} | {k: n for k, n in counts.items() if n}
    shown.pop("deselected", None)
    return ", ".join(f"{number} {what}" for what, number in shown.items())


def run(names: list[str], at_once: int, jobs: int, options: list[str]) -> int:
    """Run the parts, some of them at the same time; the exit code."""
    began, lines, total, failed = time.monotonic(), [], Counter[str](), False
    waiting, running = list(names), list[Part]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(Part(waiting.pop(0), jobs, options))
            ended = [part for part in running if part.process.poll() is not None]
            for part in ended:
                running.remove(part)
                part.end()
                counts = part.finish()
                lines.append(f"== {part.name}: {part.seconds:.0f} s, {said(counts)}")
                print(lines[-1], flush=True)
                total += counts
                failed |= part.process.returncode not in (0, NO_TESTS)
            if not ended:
                time.sleep(0.2)
    finally:
        for part in running:
            part.end()
    print("\n".join(["", *lines]))
    print(f"==== {said(total)} in {time.monotonic() - began:.2f}s ====", flush=True)
    return int(failed)


def main() -> int:
    """Read the options and run the parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--at-once", type=int, default=2, help="parts that run at the same time")
    parser.add_argument(
        "--jobs", type=int, help="processes of each of fast and slow (default: 2 where one part runs, else 1)"
    )
    parser.add_argument("options", nargs="*", help="for pytest, after --")
    given = parser.parse_args()

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    # SIGINT too: where the shell had it ignored, as for a job in the background, the parts would inherit that
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    try:
        names = [name for name in PARTS if name in given.parts]
        jobs = given.jobs or (2 if len(names) == 1 else 1)
        return run(names, given.at_once, jobs, given.options)
    except KeyboardInterrupt:
        print("interrupted: all parts have been ended", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
