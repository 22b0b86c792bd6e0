"""One look-up of perturbations by name, for settings and questions: what ``convert`` accepted is found."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tadvae.base.labels import CONTROL_WORDS, label_text, split_label
from tadvae.genes.names import GeneNames
from tadvae.store.labels import longest_names

if TYPE_CHECKING:  # reading a store needs compiled loops, which a network does not
    from tadvae.store.reader import Store


@dataclass(frozen=True)
class Found:
    """What one name means.

    Attributes
    ----------
    name
        The name as it was asked for, or, for a label of several targets, the target's.
    target
        Name of the target in the store or model; None: no target.
    gene
        Key of the gene; None: no gene. With neither, the name is unknown.
    """

    name: str
    target: str | None = None
    gene: str | None = None

    @property
    def known(self) -> bool:
        """Whether the name is that of a target or gene."""
        return self.target is not None or self.gene is not None


@dataclass(frozen=True)
class Asked:
    """A perturbation as it was asked for.

    Attributes
    ----------
    parts
        Its targets, each once; none for the control.
    label
        ``A+B``: sorted names as they were asked for, without controls; ``control`` for the control.
    """

    parts: tuple[Found, ...]
    label: str


class Lookup:
    """Finds perturbations by name.

    A name is looked up whole before it is split at ``+`` or the dataset's own separator. Whole, it is a label
    (or part of one) in the file of the asked dataset, a target, a label of another dataset, ``control``, or a
    gene under any of its names, in this order. Controls that are joined to targets are ignored.

    Parameters
    ----------
    targets
        Gene key by the name of each target; None: not a gene.
    labels
        For each dataset, names of targets by label, as the file spells it.
    separators
        For each dataset, the text between targets in its labels.
    genes
        Look-up of genes.
    """

    def __init__(
        self,
        targets: Mapping[str, str | None],
        labels: Sequence[Mapping[str, tuple[str, ...]]],
        separators: Sequence[str | None],
        genes: GeneNames,
    ) -> None:
        self._targets, self._labels, self._separators, self._genes = targets, labels, separators, genes
        self._by_gene = {gene: name for name, gene in targets.items() if gene is not None}
        self._elsewhere: dict[str, tuple[str, ...] | None] = {}
        for each in labels:
            for label, item in each.items():
                if self._elsewhere.setdefault(label, item) != item:
                    self._elsewhere[label] = None  # datasets mean different perturbations by it

    @classmethod
    def of_store(cls, store: "Store") -> "Lookup":
        """The names of a store."""
        keys = store.genes["gene"].to_numpy()
        targets = {
            target: keys[gene] if gene >= 0 else None
            for row in store.perturbations.itertuples()
            for target, gene in zip(row.targets, row.target_genes, strict=True)
        }
        return cls(targets, store.labels, store.separators, store.gene_names)

    def find(self, asked: Any, dataset: int) -> Asked:
        """What a name (``A+B``), or a sequence of names, means in a dataset.

        Unknown names are parts of the result, see :attr:`Found.known`.
        """
        several = isinstance(asked, Iterable) and not isinstance(asked, str)
        parts: dict[tuple[str | None, str | None, str], Found] = {}
        shown: list[str] = []
        for text in [label_text(each).strip() for each in (asked if several else [asked])]:
            found = self._find(text, dataset)
            shown += self._shown(text, found, dataset)
            for part in found:
                parts.setdefault((part.target, part.gene, "" if part.known else part.name), part)
        names = sorted(set(shown))
        if len(names) != len(parts):
            names = sorted(part.name for part in parts.values())
        return Asked(tuple(parts.values()), "+".join(names) or "control")

    def _find(self, text: str, dataset: int) -> list[Found]:
        whole = self._whole(text, dataset)
        if whole is not None:
            return whole
        pieces: list[str] = []
        for separator in dict.fromkeys((self._separators[dataset], "+")):
            if separator is None:
                continue
            pieces = longest_names(
                split_label(text, separator), separator, lambda name: self._whole(name, dataset) is not None
            )
            found = [self._whole(piece, dataset) for piece in pieces]
            if all(each is not None for each in found):
                return [part for each in found for part in each or ()]
        found = [self._whole(piece, dataset) for piece in pieces]
        return [
            part
            for piece, each in zip(pieces, found, strict=True)
            for part in ([Found(piece)] if each is None else each)
        ]

    def _whole(self, text: str, dataset: int) -> list[Found] | None:
        """What a name means that is not split, None if nothing."""
        own = self._labels[dataset].get(text)
        if own is None and text in self._targets:
            own = (text,)
        if own is None:
            own = self._elsewhere.get(text)
        if own is not None:
            return [Found(text if len(own) == 1 else target, target, self._targets[target]) for target in own]
        if text in CONTROL_WORDS:
            return []
        (gene,) = self._genes.keys([text], dataset)
        return None if gene is None else [Found(text, self._by_gene.get(gene), gene)]

    def _shown(self, text: str, found: list[Found], dataset: int) -> list[str]:
        """The names in a text, without controls, if there is one for each target."""
        splits = [split_label(text, separator) for separator in (self._separators[dataset], "+", None)]
        for pieces in sorted(splits, key=len, reverse=True):
            known = {piece.strip(): self._whole(piece.strip(), dataset) for piece in pieces}
            names = [name for name, meaning in known.items() if meaning != []]
            if None not in known.values() and len(names) == len(found):
                return names
        return [part.name for part in found]
