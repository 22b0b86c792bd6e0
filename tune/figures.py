"""Figures of a sweep as inline SVG: they need no network, scale, and say in words what they show."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from tadvae.report.svg import COLOURS, short_number, svg
from tadvae.report.svg import text as _text
from tune.config import SweepConfig
from tune.journal import short
from tune.records import CELLS_SEEN, TrialRecord

WIDTH, HEIGHT = 960, 380
TOP, BOTTOM, SIDE = 52, 58, 74


def colour_key(config: SweepConfig) -> str | None:
    """The parameter that colours tell apart: the first choice."""
    return next((key for key, parameter in config.parameters.items() if parameter.choice), None)


def colour_of(record: TrialRecord, config: SweepConfig) -> str:
    """A trial's colour."""
    key = colour_key(config)
    if key is None:
        return COLOURS[0]
    choice = config.parameters[key].choice or []
    value = record.values.get(key)
    return COLOURS[choice.index(value) % len(COLOURS)] if value in choice else COLOURS[0]


def legend(config: SweepConfig) -> str:
    """What colours and dashes mean, as HTML."""
    key = colour_key(config)
    items = ["solid: finished", "dashed: stopped, failed or running"]
    if key is not None:
        for i, value in enumerate(config.parameters[key].choice or []):
            swatch = f'<span class="swatch" style="background:{COLOURS[i % len(COLOURS)]}"></span>'
            items.append(f"{swatch}{escape(key.rsplit('.', 1)[-1])} {escape(short(value))}")
    return '<p class="legend">' + " ".join(f"<span>{item}</span>" for item in items) + "</p>"


def parallel_coordinates(records: Sequence[TrialRecord], config: SweepConfig) -> str:
    """A line a trial, across an axis a parameter, to the metric."""
    shown = [record for record in records if record.value(config.metric) is not None]
    axes = [_parameter_axis(key, config) for key in config.parameters]
    axes.append(_range_axis(config.metric, [record.value(config.metric) or 0.0 for record in shown]))
    step = (WIDTH - 2 * SIDE) / max(len(axes) - 1, 1)
    parts = []
    for i, axis in enumerate(axes):
        x = SIDE + i * step
        label = axis["label"]
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" class="axis"/>')
        parts.append(_text(x, TOP - 26 + 13 * (i % 2), label, "middle", "strong"))
        for value, name in axis["ticks"]:
            parts.append(_text(x + 5, _y(value) + 4, name, "start"))
    for record in shown:
        values = [*(record.values.get(key) for key in config.parameters), record.value(config.metric)]
        points = []
        for i, (axis, value) in enumerate(zip(axes, values, strict=True)):
            y = HEIGHT - BOTTOM + 24 if value is None else _y(_position(axis, value))
            points.append(f"{SIDE + i * step:.1f},{y:.1f}")
        parts.append(
            f'<polyline class="trial" data-trial="{record.number}" points="{" ".join(points)}" '
            f"{_stroke(record, config)}><title>{escape(_about(record, config))}</title></polyline>"
        )
    parts.append(_text(SIDE - 8, HEIGHT - BOTTOM + 28, "not set", "end"))
    return _svg(
        "parallel",
        "Parallel coordinates",
        f"One line for each of {len(shown)} trials over {len(axes) - 1} parameters, to {config.metric}; "
        "the table below has the same values.",
        parts,
    )


def learning_curves(records: Sequence[TrialRecord], config: SweepConfig) -> str:
    """The metric over the cells that each trial has seen."""
    shown = [record for record in records if any(config.metric in point for point in record.curve)]
    points = [(p[CELLS_SEEN], p[config.metric]) for r in shown for p in r.curve if config.metric in p]
    x_axis = _range_axis("cells seen", [0.0, *(x for x, _ in points)])
    y_axis = _range_axis(config.metric, [y for _, y in points])
    parts = [
        f'<line x1="{SIDE}" x2="{WIDTH - SIDE}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}" class="axis"/>',
        f'<line x1="{SIDE}" x2="{SIDE}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" class="axis"/>',
        _text(WIDTH / 2, HEIGHT - 12, "cells seen", "middle", "strong"),
        _text(SIDE - 60, TOP - 16, config.metric, "start", "strong"),
    ]
    parts += [_text(_x(at), HEIGHT - BOTTOM + 18, name, "middle") for at, name in x_axis["ticks"]]
    parts += [_text(SIDE - 6, _y(at) + 4, name, "end") for at, name in y_axis["ticks"]]
    for record in shown:
        line = [
            f"{_x(_position(x_axis, p[CELLS_SEEN])):.1f},{_y(_position(y_axis, p[config.metric])):.1f}"
            for p in record.curve
            if config.metric in p
        ]
        title = f"<title>{escape(_about(record, config))}</title>"
        parts.append(
            f'<polyline class="trial" data-trial="{record.number}" points="{" ".join(line)}" '
            f"{_stroke(record, config)}>{title}</polyline>"
        )
        x, y = line[-1].split(",")
        parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour_of(record, config)}">{title}</circle>')
    return _svg(
        "curves",
        "Learning curves",
        f"{config.metric} on held-out perturbations over cells seen, one line a trial ({len(shown)}).",
        parts,
    )


def importance_bars(shares: dict[str, float], config: SweepConfig) -> str:
    """A bar a parameter, the largest first."""
    height, left = 40 + 26 * len(shares), 250
    scale = (WIDTH - left - 90) / max([*shares.values(), 1e-9])
    parts = []
    for i, (key, share) in enumerate(shares.items()):
        y, star = 24 + 26 * i, " *" if config.parameters[key].when else ""
        parts.append(_text(left - 8, y + 14, key + star, "end"))
        parts.append(
            f'<rect x="{left}" y="{y}" width="{share * scale:.1f}" height="18" fill="{COLOURS[0]}">'
            f"<title>{escape(key)}: {share:.3f}</title></rect>"
        )
        parts.append(_text(left + share * scale + 6, y + 14, f"{share:.3f}", "start"))
    words = "; ".join(f"{key} {share:.3f}" for key, share in shares.items())
    return _svg("importance", "Importance of parameters", words, parts, height)


def _svg(name: str, title: str, description: str, parts: Sequence[str], height: int = HEIGHT) -> str:
    return svg(name, title, description, parts, WIDTH, height)


def _stroke(record: TrialRecord, config: SweepConfig) -> str:
    dash = "" if record.status == "finished" else ' stroke-dasharray="6 4"'
    return f'stroke="{colour_of(record, config)}"{dash}'


def _about(record: TrialRecord, config: SweepConfig) -> str:
    value = record.value(config.metric)
    settings = ", ".join(f"{key}={short(v)}" for key, v in record.values.items())
    return f"trial {record.number:04d} ({record.status}): {config.metric} {value:.4f}; {settings}"


def _parameter_axis(key: str, config: SweepConfig) -> dict[str, Any]:
    parameter = config.parameters[key]
    name = key.removesuffix(".high").rsplit(".", 1)[-1]
    if parameter.choice is not None:
        n = max(len(parameter.choice) - 1, 1)
        ticks = [(i / n, short(value)) for i, value in enumerate(parameter.choice)]
        return {"label": name, "choice": parameter.choice, "ticks": ticks}
    low, high = (float(v) for v in parameter.corners)
    return _scale(name, low, high, log=parameter.loguniform is not None)


def _range_axis(label: str, values: Sequence[float]) -> dict[str, Any]:
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    return _scale(label, low, high if high > low else low + 1.0, log=False)


def _scale(label: str, low: float, high: float, *, log: bool) -> dict[str, Any]:
    ticks = []
    for at in (0.0, 0.5, 1.0):
        value = low * (high / low) ** at if log else low + (high - low) * at
        ticks.append((at, short_number(value)))
    return {"label": label, "low": low, "high": high, "log": log, "ticks": ticks}


def _position(axis: dict[str, Any], value: Any) -> float:
    """Where a value lies on an axis, 0 to 1."""
    if "choice" in axis:
        return axis["choice"].index(value) / max(len(axis["choice"]) - 1, 1)
    if not math.isfinite(value):
        return 0.0
    low, high = axis["low"], axis["high"]
    return math.log(value / low) / math.log(high / low) if axis["log"] else (value - low) / (high - low)


def _x(at: float) -> float:
    return SIDE + at * (WIDTH - 2 * SIDE)


def _y(at: float) -> float:
    return HEIGHT - BOTTOM - at * (HEIGHT - BOTTOM - TOP)
