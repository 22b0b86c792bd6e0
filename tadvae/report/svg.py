"""Inline SVG: figures that need no network, scale, and say in words what they show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0072b2", "#b34700", "#00724f", "#8f3a6f", "#1a1a1a", "#6b5400", "#5b5fc7", "#a3172b")
"""Each at least 4.5:1 on white; further values of a choice start again."""
NOTHING = "#d9d9d9"
"""Where there is no value."""


def svg(name: str, title: str, description: str, parts: Sequence[str], width: float, height: float) -> str:
    """A figure with its title and description; ``name`` is unique on the page."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{name}-title {name}-text">'
        f'<title id="{name}-title">{escape(title)}</title><desc id="{name}-text">{escape(description)}</desc>'
        + "".join(parts)
        + "</svg>"
    )


def text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    """Words at a place; ``kind`` is a CSS class."""
    style = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(words)}</text>'


def short_number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


@dataclass(frozen=True)
class Scale:
    """From values between ``low`` and ``high`` to pixels between ``start`` and ``end``."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def over(cls, values: Sequence[float], start: float, end: float) -> "Scale":
        """The range of the finite values, never empty."""
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(finite), max(finite)
        return cls(low, high if high > low else low + 1.0, start, end)

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """The ends, and between them the middle, or zero where it is not far from that."""
        middle, quarter = (self.low + self.high) / 2, (self.high - self.low) / 4
        return [self.low, 0.0 if abs(middle) < quarter else middle, self.high]


def diverging(value: float) -> str:
    """A colour for −1 (blue) over 0 (white) to 1 (orange)."""
    if not math.isfinite(value):
        return NOTHING
    strength = min(abs(value), 1.0)
    end = (179, 71, 0) if value > 0 else (0, 90, 160)
    return "#" + "".join(f"{round(255 + (channel - 255) * strength):02x}" for channel in end)
