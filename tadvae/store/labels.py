"""What the labels of a dataset mean: which targets, the control, or nothing."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd

from tadvae.base.errors import UserError
from tadvae.base.labels import is_blank, label_text, like_control, split_label
from tadvae.store.spec import DatasetSpec, PerturbationSpec

LONGEST_NAME = 6
"""Most parts between separators that are looked up together as one name."""

Targets = tuple[str, ...]
"""Sorted targets of a perturbation; the empty tuple is the control."""


@dataclass(frozen=True)
class ParsedLabels:
    """The column of labels, understood.

    Attributes
    ----------
    targets
        Targets of every cell, an object array of tuples; the empty tuple also where a cell is not kept.
    keep
        Which cells are kept, bool.
    spelt
        Targets by label, and by part of a label, as they are spelt in the file.
    """

    targets: np.ndarray
    keep: np.ndarray
    spelt: dict[str, Targets]


def parse_labels(
    column: pd.Series, dataset: DatasetSpec, where: str, is_gene: Callable[[str], bool]
) -> ParsedLabels:
    """Understand the labels of all cells.

    Parameters
    ----------
    column
        Column of ``obs`` with the labels.
    where
        The dataset and its file, for messages.
    is_gene
        Whether a name is that of a gene: it is then not split at separators.

    Raises
    ------
    UserError
        For missing labels, unless the spec drops them, for labels that do not parse or look like a control
        that is not declared, and for settings that no label answers to.
    """
    assert dataset.perturbation is not None
    codes, values = pd.factorize(column)
    texts = [_spelling(value, dataset) for value in values]
    parser = _Parser(dataset.perturbation, dataset, where, is_gene, set(texts))
    excluded = set(dataset.perturbation.exclude)
    meanings = [None if text in excluded else parser.parse(text) for text in texts]
    missing = [
        meaning is None and text not in excluded for text, meaning in zip(texts, meanings, strict=True)
    ]
    blank = np.array([*missing, True])[codes]  # cells without a value have the code -1
    if blank.any() and dataset.perturbation.missing == "error":
        shown = sorted({texts[code] for code in codes[blank] if code >= 0})
        as_words = f" (such as the text {shown[0]!r})" if shown else ""
        raise UserError(
            f"{where}: {int(blank.sum())} cells have no value{as_words} in obs column "
            f"'{column.name}'; label them or set 'missing: drop' under 'perturbation'."
        )
    parser.check_settings(str(column.name))
    keep = np.array([meaning is not None for meaning in meanings] + [False])[codes]
    each = np.empty(len(values) + 1, dtype=object)
    each[-1] = ()
    for code, meaning in enumerate(meanings):
        each[code] = meaning or ()
    for value, text in zip(values, texts, strict=True):
        if text in parser.spelt:
            parser.spelt.setdefault(str(value), parser.spelt[text])  # 1.0, where the label is 1
    return ParsedLabels(each[codes], keep, parser.spelt)


def _spelling(value: object, dataset: DatasetSpec) -> str:
    """Text of a label; a number in the way in which the spec writes it."""
    plain, written = label_text(value).strip(), str(value).strip()
    return written if written != plain and written in _declared(dataset) else plain


def _declared(dataset: DatasetSpec) -> set[str]:
    """Names that the spec gives a meaning to."""
    spec = dataset.perturbation
    assert spec is not None
    own = set(dataset.modality) - {"default"} if isinstance(dataset.modality, dict) else set()
    return spec.controls | set(spec.exclude) | set(spec.rename) | own


class _Parser:
    def __init__(
        self,
        spec: PerturbationSpec,
        dataset: DatasetSpec,
        where: str,
        is_gene: Callable[[str], bool],
        labels: set[str],
    ) -> None:
        self._spec, self._where, self._is_gene, self._labels = spec, where, cache(is_gene), labels
        self._signatures = dataset.kind == "signatures"
        self._declared = _declared(dataset)
        self._written: set[str] = set()
        self._undeclared: list[tuple[str, str]] = []
        self.spelt: dict[str, Targets] = dict.fromkeys(sorted(spec.controls), ())

    def parse(self, label: str) -> Targets | None:
        """Targets of a label, None if the label or a part of it stands for a missing value."""
        spec = self._spec
        parts = self._parts(label)
        if any(is_blank(part) and part not in self._declared for part in parts if part or len(parts) == 1):
            return None
        names = {part: self._name(part) for part in parts}
        if not all(names.values()):
            raise UserError(
                f"{self._where}: the label {label!r} in obs column '{spec.column}' does not parse "
                f"with separator {spec.separator!r} (a target is empty); fix the label or "
                "'perturbation.separator' or 'perturbation.remove'."
            )
        for name in names.values():
            if spec.rename.get(name) != name and like_control(name, spec.controls):
                self._undeclared.append((name, label))
        self._written |= {label, *parts, *(self._removed(part) for part in parts)}
        for part, name in names.items():
            self.spelt.setdefault(part, () if name in spec.controls else (name,))
        targets = tuple(sorted({name for name in names.values() if name not in spec.controls}))
        self.spelt[label] = targets
        return targets

    def _not_declared(self, name: str, label: str) -> UserError:
        both = ", ".join([*sorted(self._spec.controls), name])
        of = "" if name == label else f" of '{label}'"
        gene = f" (if it is the gene, set rename: {{{name}: {name}}})" if self._is_gene(name) else ""
        return UserError(
            f"{self._where}: label '{name}'{of} in obs column '{self._spec.column}' is not declared, but "
            f"spelt like a control; add it to control: [{both}] or exclude it{gene}."
        )

    def check_settings(self, column: str) -> None:
        """Raise a UserError if there is no control, one is not declared, or a setting names no target."""
        spec = self._spec
        found = self._written & self._labels
        if self._signatures:
            self._require_no_controls(found, column)
        elif not any(self.spelt[label] == () for label in found):
            shown = ", ".join(f"'{label}'" for label in sorted(found)[:5])
            unquoted = any(re.fullmatch(r"True|False|-?[\d.]+", control) for control in spec.controls)
            quote = " (put a label such as 007, on or no in quotes)" if unquoted else ""
            raise UserError(
                f"{self._where}: no control cells: obs column '{column}' never holds "
                f"{' or '.join(repr(c) for c in sorted(spec.controls))} (it holds {shown}, …); "
                f"correct 'perturbation.control' in the spec{quote}."
            )
        if self._undeclared:
            raise self._not_declared(*self._undeclared[0])
        absent = sorted(set(spec.rename) - self._written)
        if absent:  # a misspelt target would otherwise be ignored silently
            raise UserError(
                f"{self._where}: 'perturbation.rename' names {', '.join(absent[:5])}, but no label in obs "
                f"column '{column}' has this target; fix its spelling in the spec."
            )

    def _require_no_controls(self, found: set[str], column: str) -> None:
        """Raise a UserError if a row of signatures is the control, or looks like it.

        Its value is zero by definition; rows that hold something else are noise, or no signatures at all.
        """
        controls = [label for label in found - set(self._spec.exclude) if self.spelt[label] == ()]
        controls += [label for name, label in self._undeclared if name == label]
        if controls:
            raise UserError(
                f"{self._where}: label '{min(controls)}' in obs column '{column}' is a control, but "
                "signatures are differences from the control, which has no row; list it under "
                "'perturbation.exclude', or say 'kind: profiles' if the rows are expression."
            )

    def _name(self, part: str) -> str:
        """Name of the target that a part of a label stands for."""
        spec = self._spec
        if part in spec.controls:
            return part
        removed = self._removed(part)
        return spec.rename.get(part, spec.rename.get(removed, removed))

    def _removed(self, part: str) -> str:
        return part if self._spec.remove is None else re.sub(self._spec.remove, "", part)

    def _parts(self, label: str) -> list[str]:
        """Parts of a label: the longest names that the spec or the genes know, or else between separators."""
        separator = self._spec.separator
        pieces = split_label(label, separator)
        if separator is None or len(pieces) == 1 or label in self._declared:
            return [label.strip()]
        if all(piece.strip() in self._labels for piece in pieces):
            return [piece.strip() for piece in pieces]  # each alone is a label of this file
        return longest_names(pieces, separator, self._is_name)

    def _is_name(self, text: str) -> bool:
        removed = self._removed(text)
        return bool({text, removed} & self._declared) or self._is_gene(removed)


def longest_names(pieces: list[str], separator: str, known: Callable[[str], bool]) -> list[str]:
    """Join neighbouring pieces of a label where they are a known name together (``HLA-A`` split at ``-``).

    Of all ways to do so, one with the fewest unknown names, and of these with the fewest names.
    """
    n = len(pieces)
    best = [(0, 0, n)] * (n + 1)  # of the pieces from here on: unknown names, names, end of the first
    for at in reversed(range(n)):
        options = []
        for stop in range(at + 1, min(n, at + LONGEST_NAME) + 1):
            is_known = known(separator.join(pieces[at:stop]).strip())
            if is_known or stop == at + 1:
                unknown, names, _ = best[stop]
                options.append((unknown + (not is_known), names + 1, stop))
        best[at] = min(options)
    parts, at = [], 0
    while at < n:
        stop = best[at][2]
        parts.append(separator.join(pieces[at:stop]).strip())
        at = stop
    return parts
