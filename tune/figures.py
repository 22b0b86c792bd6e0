"""The figures of the sweep page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tadvae.report.charts import (
    COLOURS,
    Box,
    Curve,
    Scale,
    curves,
    element,
    hover,
    line,
    polyline,
    short_number,
    svg,
    text,
)
from tune.config import SweepConfig
from tune.records import CELLS_SEEN, TrialRecord
from tune.shown import assignments, short, short_name

WIDTH, HEIGHT = 960, 380
BOX = Box(left=74, right=WIDTH - 74, top=52, bottom=HEIGHT - 58)
NOT_SET = BOX.bottom + 24
"""Height at which a line passes a parameter that its trial did not set."""


@dataclass(frozen=True)
class Key:
    """One entry of the legend of colours: a value of the parameter that colours tell apart."""

    colour: str
    label: str


def colour_key(config: SweepConfig) -> str | None:
    """Return the parameter that colours tell apart, which is the first choice."""
    return next((key for key, parameter in config.parameters.items() if parameter.choice), None)


def colour_of(record: TrialRecord, config: SweepConfig) -> str:
    """Return the colour of a trial."""
    key = colour_key(config)
    if key is None:
        return COLOURS[0]
    choice = config.parameters[key].choice or []
    value = record.values.get(key)
    return COLOURS[choice.index(value) % len(COLOURS)] if value in choice else COLOURS[0]


def legend(config: SweepConfig) -> list[Key]:
    """Return what the colours mean; empty where no parameter is a choice."""
    key = colour_key(config)
    if key is None:
        return []
    name, choice = short_name(key), config.parameters[key].choice or []
    return [Key(COLOURS[i % len(COLOURS)], f"{name} {short(value)}") for i, value in enumerate(choice)]


def parallel_coordinates(records: Sequence[TrialRecord], config: SweepConfig) -> Markup:
    """Return one line for each trial across one axis for each parameter, to the metric."""
    shown = [record for record in records if record.value(config.metric) is not None]
    axes = [_parameter_axis(key, config) for key in config.parameters]
    values = [record.value(config.metric) or 0.0 for record in shown]
    axes.append(Axis(config.metric, Scale.over(values, BOX.bottom, BOX.top)))
    step = (BOX.right - BOX.left) / max(len(axes) - 1, 1)
    parts = []
    for i, axis in enumerate(axes):
        x = BOX.left + i * step
        parts.append(line(x, BOX.top, x, BOX.bottom, "axis"))
        parts.append(text(x, BOX.top - 26 + 13 * (i % 2), axis.label, "middle", "strong"))
        parts += [text(x + 5, y + 4, words) for y, words in axis.ticks()]
    for record in shown:
        given = [*(record.values.get(key) for key in config.parameters), record.value(config.metric)]
        points = [
            (BOX.left + i * step, axis.place(value))
            for i, (axis, value) in enumerate(zip(axes, given, strict=True))
        ]
        title = hover(_about(record, config))
        parts.append(polyline(points, colour_of(record, config), title, **_look(record)))
    parts.append(text(BOX.left - 8, NOT_SET + 4, "not set", "end"))
    words = (
        f"One line for each of {len(shown)} trials over {len(axes) - 1} parameters, to {config.metric}; "
        "the table below has the same values."
    )
    return svg("parallel", "Parallel coordinates", words, parts, WIDTH, HEIGHT)


def learning_curves(records: Sequence[TrialRecord], config: SweepConfig) -> Markup:
    """Return the metric over the cells that each trial has seen."""
    shown = [record for record in records if any(config.metric in point for point in record.curve)]
    lines = [
        Curve(
            [(p[CELLS_SEEN], p[config.metric]) for p in record.curve if config.metric in p],
            _about(record, config),
            colour_of(record, config),
            _look(record),
        )
        for record in shown
    ]
    parts = curves(lines, BOX, "cells seen", config.metric, from_zero=True)
    words = f"{config.metric} on held-out perturbations over cells seen, one line per trial ({len(shown)})."
    return svg("curves", "Learning curves", words, parts, WIDTH, HEIGHT)


def importance_bars(shares: dict[str, float], config: SweepConfig) -> Markup:
    """Return one bar for each parameter, the largest first."""
    height, left = 40 + 26 * len(shares), 250
    scale = Scale(0.0, max([*shares.values(), 1e-9]), left, WIDTH - 90)
    parts = []
    for i, (key, share) in enumerate(shares.items()):
        y, star = 24 + 26 * i, " *" if config.parameters[key].when else ""
        parts.append(text(left - 8, y + 14, short_name(key) + star, "end"))
        bar = {"x": left, "y": y, "width": scale(share) - left, "height": 18, "fill": COLOURS[0]}
        parts.append(element("rect", hover(f"{key}: {share:.3f}"), **bar))
        parts.append(text(scale(share) + 6, y + 14, f"{share:.3f}"))
    words = "; ".join(f"{key} {share:.3f}" for key, share in shares.items())
    return svg("importance", "Importance of parameters", words, parts, WIDTH, height)


@dataclass(frozen=True)
class Axis:
    """A vertical axis of the parallel coordinates.

    Attributes
    ----------
    label
    scale
        Of a range: its values; of a choice: the positions of its values.
    choice
        The values of a choice; None for a range.
    """

    label: str
    scale: Scale
    choice: list[Any] | None = None

    def place(self, value: Any) -> float:
        """Return the height of a value; None is below the axis."""
        if value is None:
            return NOT_SET
        if self.choice is not None:
            return self.scale(self.choice.index(value))
        return self.scale(value) if math.isfinite(value) else self.scale.start

    def ticks(self) -> list[tuple[float, str]]:
        """Return heights and labels."""
        if self.choice is not None:
            return [(self.scale(i), short(value)) for i, value in enumerate(self.choice)]
        return [(self.scale(value), short_number(value)) for value in self.scale.ticks()]


def _parameter_axis(key: str, config: SweepConfig) -> Axis:
    parameter = config.parameters[key]
    name = short_name(key)
    if parameter.choice is not None:
        top = max(len(parameter.choice) - 1, 1)
        return Axis(name, Scale(0, top, BOX.bottom, BOX.top), parameter.choice)
    low, high = (float(value) for value in parameter.corners)
    return Axis(name, Scale(low, high, BOX.bottom, BOX.top, log=parameter.loguniform is not None))


def _look(record: TrialRecord) -> dict[str, object]:
    """Return the attributes of a trial's line; it is dashed unless the trial has finished."""
    dash = None if record.status == "finished" else "6 4"
    return {"class_": "trial", "data_trial": record.number, "stroke_dasharray": dash}


def _about(record: TrialRecord, config: SweepConfig) -> str:
    value = record.value(config.metric)
    shown = "no value" if value is None else f"{value:.4f}"
    about = f"trial {record.number:04d} ({record.status}): {config.metric} {shown}"
    return f"{about}; {assignments(record.values)}"
