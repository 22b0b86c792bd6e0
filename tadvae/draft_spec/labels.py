"""What the labels of a perturbation column tell: targets, separator, suffixes of guides."""

import re
from collections.abc import Callable, Iterable

from tadvae.draft_spec.control_labels import is_control_label

SEPARATORS = ("+", "|", ";", ",", "&", ":", "_", "-")
"""Texts between targets that are tried, the usual ones first."""
GUIDE_SUFFIX = r"(?:[-_.](?:sg|g|guide|gRNA|sgRNA)?[-_]?\d+|g\d+)$"
"""Regular expression of what follows the target in names of guides: ``_1``, ``g2``, ``_sg3``."""
_MOST = 2_000
"""Labels that are looked at; more tell nothing new."""


def separator_of(labels: Iterable[str], is_gene: Callable[[str], bool]) -> str | None:
    """The text between the targets of combinations, None if no label is one.

    At nine of ten labels that have it, all parts must be genes, controls, or labels of the file themselves.
    """
    every = list(labels)[:_MOST]
    known = set(every)

    def is_name(part: str) -> bool:
        return part in known or is_gene(part) or is_control_label(part)

    for separator in SEPARATORS:
        split = [
            [part.strip() for part in label.split(separator)]
            for label in every
            if separator in label and not is_gene(label) and not is_control_label(label)
        ]
        if split and sum(all(map(is_name, parts)) for parts in split) >= 0.9 * len(split):
            return separator
    return None


def share_of_genes(labels: Iterable[str], separator: str | None, is_gene: Callable[[str], bool]) -> float:
    """Share of the targets in some labels that are genes; controls are not counted."""
    parts = {
        part.strip()
        for label in list(labels)[:_MOST]
        for part in (label.split(separator) if separator and not is_gene(label) else [label])
    }
    targets = [part for part in parts if part and not is_control_label(part)]
    return sum(map(is_gene, targets)) / len(targets) if targets else 0.0


def suffix_of_guides(labels: Iterable[str], is_gene: Callable[[str], bool]) -> str | None:
    """The pattern that makes targets of names of guides, None if these are no names of guides."""
    names = [label for label in list(labels)[:_MOST] if not is_control_label(label) and not is_gene(label)]
    targets = [re.sub(GUIDE_SUFFIX, "", name) for name in names]
    guides = sum(is_gene(target) for target, name in zip(targets, names, strict=True) if target != name)
    return GUIDE_SUFFIX if names and guides >= 0.8 * len(names) else None
