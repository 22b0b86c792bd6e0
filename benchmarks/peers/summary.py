"""The table that decides: for every job, ours beside the best program of others; README shows it too."""

from pathlib import Path
from typing import Any

import numpy as np

from peers import loading_page, prediction_page, prediction_tests

START, END = "<!-- peers: written by make peers -->\n", "<!-- /peers -->\n"

Rows = dict[tuple[str, str], list[float]]


def table(stored: dict[str, Any], truth: Rows, panels: Rows) -> list[str]:
    """Lines of the table; rows whose figures are not stored yet are left out."""
    rows = [
        *_prediction(_job(stored, "prediction")),
        _best("Pathway activities: correlation with the truth, smoothed cells", truth, "smoothed cells"),
        _best("Pathway activities: a cell found through another panel (MRR)", panels, "smoothed cells, true"),
        _loading(_job(stored, "loading")),
        _training(_job(stored, "prediction")),
    ]
    lines = ["| job | tadvae | best other program | programs |", "|---|---|---|---|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows if row)]


def write_readme(place: Path, lines: list[str]) -> None:
    """Put the table between its marks."""
    text = place.read_text()
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    place.write_text(before + START + "\n".join(["", *lines, ""]) + "\n" + END + after)


def _job(stored: dict[str, Any], job: str) -> dict[str, Any]:
    start = f"{job}-"
    return {name.removeprefix(start): each for name, each in stored.items() if name.startswith(start)}


def _prediction(stored: dict[str, Any]) -> list[list[str]]:
    """Pearson-Δ over the groups that ours and a program predict; the best program has the highest."""
    rows = []
    for test in prediction_tests.TESTS:
        found = prediction_page.of_test(stored, test)
        mine = found.pop(prediction_page.OURS, None)
        if mine is None or not found or test.file is None:  # what is simulated is on the page alone
            continue
        common = {name: sorted(set(scores) & set(mine), key=sorted) for name, scores in found.items()}
        common = {name: groups for name, groups in common.items() if groups}
        if not common:
            continue
        mean = {
            name: float(np.mean([found[name][g]["pearson_delta"] for g in groups]))
            for name, groups in common.items()
        }
        best = max(mean, key=lambda name: mean[name])
        own = np.mean([mine[g]["pearson_delta"] for g in common[best]])
        job = f"{test.about}, {len(common[best])} groups (Pearson-Δ)"
        rows.append(_row(job, f"{own:.3f}", f"{mean[best]:.3f} ({best})", own >= mean[best], common))
    return rows


def _best(job: str, rows: Rows, column: str) -> list[str]:
    """Highest mean of ours and of the programs, over methods that ran in every case."""
    values = {name: each for (name, of), each in rows.items() if of == column and each}
    most = max(map(len, values.values()), default=0)
    means = {name: float(np.mean(each)) for name, each in values.items() if len(each) == most}
    ours = {name: mean for name, mean in means.items() if name.startswith("tadvae")}
    others = {name: mean for name, mean in means.items() if ", " in name and not name.startswith(OWN)}
    if not ours or not others:
        return []
    own, best = max(ours.values()), max(others, key=lambda name: others[name])
    programs = {name.split(", ")[0] for name in others}
    return _row(job, f"{own:.3f}", f"{others[best]:.3f} ({best})", own >= others[best], programs)


OWN = ("tadvae", "arithmetic", "bound", "sums")


def _loading(stored: dict[str, Any]) -> list[str]:
    found = {name: each["passes"] for name, each in stored.items() if "passes" in each}
    if not found:
        return []
    cost = {
        name: [float(np.median(loading_page.costs(each[who]))) for who in (name, "tadvae")]
        for name, each in found.items()
    }
    best = min(cost, key=lambda name: cost[name][0] / cost[name][1])
    theirs, own = cost[best]
    return _row("Loading: CPU µs per cell ↓", f"{own:.0f}", f"{theirs:.0f} ({best})", own <= theirs, cost)


def _training(stored: dict[str, Any]) -> list[str]:
    """Cells per CPU second of the first test in which ours and others were trained."""
    for test in prediction_tests.TESTS:
        speed = {}
        for name, each in stored.items():
            took = [each["training"][case] for case in test.cases if case in each.get("training", {})]
            if took:
                speed[name] = sum(one["cells"] for one in took) / sum(one["seconds"] for one in took)
        own = speed.pop("tadvae", None)
        if own is not None and speed:
            best = max(speed, key=lambda name: speed[name])
            job = f"Training: cells per CPU second ({test.about})"
            return _row(job, f"{own:,.0f}", f"{speed[best]:,.0f} ({best})", own >= speed[best], speed)
    return []


def _row(job: str, own: str, theirs: str, ahead: bool, programs: Any) -> list[str]:
    return [job, f"**{own}**" if ahead else own, theirs if ahead else f"**{theirs}**", str(len(programs))]
