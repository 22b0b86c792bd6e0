"""Charts as inline SVG, for the report page and the sweep page.

A chart needs no network, scales with the page, and has a title and a description for screen readers. Every
element is made by :func:`element`, which escapes all text and all attribute values.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

COLOURS = ("#0072b2", "#b34700", "#00724f", "#8f3a6f", "#1a1a1a", "#6b5400", "#5b5fc7", "#a3172b")
"""Line and text colours, each with a contrast of at least 4.5 on white; longer series start again."""
NO_VALUE = "#d9d9d9"
"""Fill colour of a cell without a value."""
MOST_DOTS = 25
"""A line of fewer points has a dot at each of them; a longer line only at its last."""


def element(tag: str, /, *content: str | None, **attributes: object) -> Markup:
    """Return an SVG or HTML element.

    Parameters
    ----------
    tag
        Name of the element.
    *content
        Child elements (as Markup) and texts, which are escaped. None is left out.
    **attributes
        Attribute values, which are escaped; a float is written with one decimal, and an attribute with the
        value None is left out. An underscore in a name stands for a hyphen, and one at the end is dropped
        (``class_``).
    """
    words = Markup("").join(
        Markup(' {}="{}"').format(
            name.rstrip("_").replace("_", "-"), f"{value:.1f}" if isinstance(value, float) else str(value)
        )
        for name, value in attributes.items()
        if value is not None
    )
    inside = Markup("").join(part for part in content if part is not None)
    return Markup("<{0}{1}>{2}</{0}>").format(tag, words, inside)


def svg(
    name: str, title: str, description: str, parts: Iterable[Markup], width: float, height: float
) -> Markup:
    """Return a whole chart with its title and description.

    Parameters
    ----------
    name
        Prefix of the ids; unique on the page.
    """
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-text"),
        *parts,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_labelledby=f"{name}-title {name}-text",
    )


def hover(words: str) -> Markup:
    """Return the title that a browser shows while the pointer is over the parent element."""
    return element("title", words)


def text(
    x: float,
    y: float,
    words: str,
    anchor: str = "start",
    kind: str | None = None,
    *,
    rotate: float | None = None,
    title: str | None = None,
) -> Markup:
    """Return a text at a position.

    Parameters
    ----------
    kind
        CSS class.
    rotate
        Degrees by which the text is turned around its position.
    title
        Shown while the pointer is over the text.
    """
    position: dict[str, object] = {"x": x, "y": y}
    if rotate is not None:
        position = {"transform": f"translate({x:.1f} {y:.1f}) rotate({rotate:g})"}
    return element(
        "text",
        None if title is None else hover(title),
        words,
        **position,
        text_anchor=anchor,
        class_=kind,
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """Return a straight line of the given CSS class."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def short_number(value: float) -> str:
    """Return a number with three significant digits, or with all digits before the decimal point."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def cut(words: str, length: int) -> str:
    """Return at most ``length`` characters of a text; an ellipsis marks that it was shortened."""
    return words if len(words) <= length else words[: length - 1] + "…"


def diverging(value: float) -> str:
    """Return a colour from blue (−1) over white (0) to orange (1)."""
    if not math.isfinite(value):
        return NO_VALUE
    strength = min(abs(value), 1.0)
    end = (179, 71, 0) if value > 0 else (0, 90, 160)
    return "#" + "".join(f"{round(255 + (channel - 255) * strength):02x}" for channel in end)


@dataclass(frozen=True)
class Scale:
    """A map from values between ``low`` and ``high`` to pixels between ``start`` and ``end``.

    Attributes
    ----------
    log
        Whether the logarithm of the value is mapped; ``low`` is then above zero.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    @classmethod
    def over(cls, values: Iterable[float], start: float, end: float) -> "Scale":
        """Return the scale of the range of the finite values; the range is never empty."""
        finite = [value for value in values if math.isfinite(value)] or [0.0]
        low, high = min(finite), max(finite)
        return cls(low, high if high > low else low + 1.0, start, end)

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return float(self.start + share * (self.end - self.start))

    def ticks(self) -> list[float]:
        """Return both ends and the middle between them, or zero where zero is near the middle."""
        if self.log:
            return [self.low, math.sqrt(self.low * self.high), self.high]
        middle, quarter = (self.low + self.high) / 2, (self.high - self.low) / 4
        return [self.low, 0.0 if abs(middle) < quarter else middle, self.high]


@dataclass(frozen=True)
class Box:
    """The area between the axes of a chart, in pixels."""

    left: float
    right: float
    top: float
    bottom: float


def axes(x: Scale, y: Scale, x_label: str) -> list[Markup]:
    """Return both axes with their ticks, and the name of the horizontal one."""
    parts = [line(x.start, y.start, x.end, y.start, "axis"), line(x.start, y.start, x.start, y.end, "axis")]
    for anchor, value in zip(("start", "middle", "end"), x.ticks(), strict=True):
        parts.append(text(x(value), y.start + 14, short_number(value), anchor))
    parts += [text(x.start - 5, y(value) + 4, short_number(value), "end") for value in y.ticks()]
    parts.append(text((x.start + x.end) / 2, y.start + 30, x_label, "middle"))
    return parts


@dataclass(frozen=True)
class Curve:
    """One line of a chart of curves.

    Attributes
    ----------
    points
        Pairs of x and y; those with a value that is not finite are not drawn.
    title
        Shown while the pointer is over the line.
    colour
        Of the line and its dots.
    attributes
        Further attributes of the line.
    """

    points: Sequence[tuple[float, float]]
    title: str
    colour: str
    attributes: Mapping[str, object] = field(default_factory=dict)


def curves(
    lines: Sequence[Curve], box: Box, x_label: str, y_label: str, *, from_zero: bool = False
) -> list[Markup]:
    """Return curves over common axes.

    Parameters
    ----------
    from_zero
        Whether the horizontal axis includes zero.
    """
    points = [point for curve in lines for point in curve.points]
    x = Scale.over([*([0.0] if from_zero else []), *(at for at, _ in points)], box.left, box.right)
    y = Scale.over([value for _, value in points], box.bottom, box.top)
    label = text(box.left, box.top - 12, y_label, "start", "strong")
    return [*axes(x, y, x_label), label, *(_curve(curve, x, y) for curve in lines)]


def _curve(curve: Curve, x: Scale, y: Scale) -> Markup:
    drawn = [(x(a), y(b)) for a, b in curve.points if math.isfinite(a) and math.isfinite(b)]
    dotted = drawn if len(drawn) < MOST_DOTS else drawn[-1:]
    return element(
        "g",
        hover(curve.title),
        polyline(drawn, curve.colour, **curve.attributes),
        *(element("circle", cx=a, cy=b, r=2.5, fill=curve.colour) for a, b in dotted),
    )


def polyline(
    points: Iterable[tuple[float, float]], colour: str, *content: Markup, **attributes: object
) -> Markup:
    """Return a line through points that are given in pixels."""
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return element("polyline", *content, **attributes, points=joined, stroke=colour)
