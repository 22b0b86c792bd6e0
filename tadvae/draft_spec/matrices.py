"""Where the counts are: the matrix that a spec should name, and what its values are."""

import re
from dataclasses import dataclass
from typing import Any

from tadvae.base.errors import UserError
from tadvae.draft_spec.file import Head, LookedAt

_COUNTS = re.compile(r"(?i)(raw|raw_?counts?|counts?(_raw)?|umis?|umi_?counts?)")


@dataclass(frozen=True)
class Matrix:
    """The matrix to convert.

    Attributes
    ----------
    head
        Some of its rows.
    settings
        What the spec says of it: ``counts`` and ``values`` where they are not the defaults.
    reason
        Why this is a guess; None: it is not.
    """

    head: Head
    settings: dict[str, Any]
    reason: str | None


def matrix_of(file: LookedAt) -> Matrix:
    """Raw counts wherever they are, or else fractional counts, log1p values or signed values of X.

    Raises
    ------
    UserError
        If no matrix has values that can be converted.
    """
    by_kind: dict[str, list[Head]] = {}
    for head in file.heads:
        by_kind.setdefault(head.kind, []).append(head)
    if counts := by_kind.get("counts"):
        first, *others = sorted(
            counts, key=lambda head: (head.place != "X", not _COUNTS.fullmatch(head.place))
        )
        several = first.place != "X" and not _COUNTS.fullmatch(first.place) and others
        reason = f"{len(counts)} matrices hold whole numbers" if several else None
        return Matrix(first, {} if first.place == "X" else {"counts": first.place}, reason)
    if fractional := by_kind.get("fractional"):
        first = fractional[0]
        layer = {} if first.place == "X" else {"layer": first.place}
        return Matrix(
            first,
            {"counts": {**layer, "round": True}},
            "fractional counts, which will be rounded to whole numbers",
        )
    main = file.heads[0]
    if main.kind in ("log1p", "unclear"):
        reason = None if main.kind == "log1p" else "no matrix holds counts, and nothing proves what X is"
        return Matrix(main, {"values": "log1p"}, reason)
    if main.kind == "signed":
        return Matrix(main, {}, None)
    what = (
        "cannot be read or are not finite"
        if main.kind == "unreadable"
        else "look normalised, not log-transformed"
    )
    raise UserError(
        f"{file.path}: the values of X {what}, and no layer and no .raw holds counts; give a file with raw "
        "counts."
    )
