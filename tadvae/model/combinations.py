"""What is asked of a model: listed perturbations, all single targets, all pairs; and in which contexts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.data.amounts import Pair, require_amounts
from tadvae.data.lookup import Asked, Found
from tadvae.data.vocabulary import Vocabulary
from tadvae.model.targets import find_target, with_amounts

TILE = 32
"""Pairs are asked in squares of this width: their targets are few, and the single effects of those are
computed once for all pairs of the square."""


@dataclass(frozen=True)
class Question:
    """One perturbation that is asked for.

    Attributes
    ----------
    label
        ``A+B``: its targets, by name.
    pairs
        Its pairs in the model's indices; None: it cannot be answered.
    reason
        Why it cannot be answered; empty if it can.
    """

    label: str
    pairs: list[Pair] | None
    reason: str = ""


@dataclass(frozen=True)
class Combinations:
    """Which perturbations are asked for.

    Attributes
    ----------
    listed
        Names, as :meth:`tadvae.model.tadvae.TADVAE.predict` takes them; of repeated ones the first counts.
    singles
        Whether every single target is asked for: those of the dataset, and those that other datasets perturb
        in the dataset's most frequent way.
    pairs
        Whether every pair of these targets is.
    amounts
        Dose and time of all of them; None: the largest of training.
    """

    listed: tuple[str | Sequence[str], ...] = ()
    singles: bool = False
    pairs: bool = False
    amounts: tuple[float | None, float | None] = (None, None)

    @classmethod
    def of(cls, targets: "Combinations | Sequence[str | Sequence[str]] | str") -> "Combinations":
        """A list of perturbations, or one of the words ``singles``, ``pairs`` and ``singles+pairs``."""
        words = {
            "singles": cls((), True),
            "pairs": cls((), False, True),
            "singles+pairs": cls((), True, True),
        }
        if isinstance(targets, Combinations):
            return targets
        if isinstance(targets, str):
            if targets not in words:
                raise UserError(
                    f"targets '{targets}': expected a list of perturbations, or one of {', '.join(words)}."
                )
            return words[targets]
        if not targets:
            raise UserError("targets: the list is empty; name at least one perturbation.")
        return cls(tuple(targets))

    def at(self, dataset: int, vocabulary: Vocabulary, unknown: Callable[[int], str | None]) -> "Questions":
        """What is asked in a dataset.

        Parameters
        ----------
        unknown
            Why a model cannot answer for a target, None if it can.
        """
        require_amounts(vocabulary.amounts, self.amounts)
        return Questions(self, dataset, vocabulary, unknown)


@dataclass(frozen=True)
class Questions:
    """The perturbations that are asked for in one dataset, made one after the other, never all at once."""

    asked: Combinations
    dataset: int
    vocabulary: Vocabulary
    unknown: Callable[[int], str | None]

    def __len__(self) -> int:
        n = len(self._targets)
        count = n * self.asked.singles + n * (n - 1) // 2 * self.asked.pairs
        return len(self._listed) + count - len(self._repeated)

    def __iter__(self) -> Iterator[Question]:
        yield from self._listed.values()
        targets = self._targets
        if self.asked.singles:
            yield from (each for i, each in targets if frozenset([i]) not in self._listed)
        if self.asked.pairs:
            tiles = range(0, len(targets), TILE)
            for rows, columns in ((a, b) for a in tiles for b in tiles if a <= b):
                for i, (one, first) in enumerate(targets[rows : rows + TILE], rows):
                    for other, second in targets[max(columns, i + 1) : columns + TILE]:
                        if frozenset([one, other]) not in self._listed:
                            yield _pair(first, second)

    def parts(self, size: int) -> Iterator[list[Question]]:
        """Some questions at a time."""
        questions = iter(self)
        while part := list(islice(questions, size)):
            yield part

    @cached_property
    def _targets(self) -> list[tuple[int, Question]]:
        """The single targets, by name: index and question of each."""
        entry, datasets = self.vocabulary.datasets[self.dataset], self.vocabulary.datasets
        alike = {t for each in datasets for t, m in each.target_modality.items() if m == entry.modality}
        found = []
        for i in alike | entry.target_modality.keys():
            name = self.vocabulary.targets[i].name
            found.append((i, self._question(Asked((Found(name, name),), name))))
        return sorted(found, key=lambda each: each[1].label)

    @cached_property
    def _listed(self) -> dict[frozenset[int | str], Question]:
        """The listed perturbations by their targets: an index, or the name of what is none."""
        found: dict[frozenset[int | str], Question] = {}
        index = self.vocabulary.target_index
        for name in self.asked.listed:
            asked = self.vocabulary.lookup.find(name, self.dataset)
            targets = frozenset(index.get(part.target or "", part.name) for part in asked.parts)
            found.setdefault(targets, self._question(asked))
        return found

    @cached_property
    def _repeated(self) -> list[frozenset[int | str]]:
        """Listed perturbations that are among the singles or pairs too."""
        inside = {i for i, _ in self._targets} if self.asked.singles or self.asked.pairs else set()
        sizes = [size for size, all_of in ((1, self.asked.singles), (2, self.asked.pairs)) if all_of]
        return [key for key in self._listed if len(key) in sizes and key <= inside]

    def _question(self, asked: Asked) -> Question:
        try:
            found = [find_target(part, self.dataset, self.vocabulary, self.unknown) for part in asked.parts]
            pairs = with_amounts(found, self.dataset, self.vocabulary, self.asked.amounts)
        except UserError as error:
            return Question(asked.label, None, str(error))
        return Question(asked.label, pairs)


def _pair(first: Question, second: Question) -> Question:
    label = "+".join(sorted((first.label, second.label)))
    if first.pairs is None or second.pairs is None:
        return Question(label, None, first.reason or second.reason)
    return Question(label, [*first.pairs, *second.pairs])


def rows_of(
    vocabulary: Vocabulary, context: str | Sequence[str] | None, dataset: str | Sequence[str] | None
) -> list[int]:
    """Rows of the vocabulary's contexts that are meant: those with these names, in these datasets.

    Parameters
    ----------
    context, dataset
        One name or several; None: all.

    Raises
    ------
    UserError
        If a name is unknown, or a dataset has none of the contexts.
    """
    names, datasets = _listed(context), _listed(dataset)
    known = [entry.name for entry in vocabulary.datasets]
    for name in datasets or ():
        if name not in known:
            raise UserError(f"dataset '{name}' was not in training (known: {', '.join(known)}).")
    chosen = (
        range(len(known)) if datasets is None else [known.index(name) for name in dict.fromkeys(datasets)]
    )
    rows = [i for d in chosen for i, entry in enumerate(vocabulary.contexts) if entry.dataset == d]
    if names is not None:
        for name in names:
            if not any(vocabulary.contexts[i].name == name for i in rows):
                at = sorted({vocabulary.contexts[i].name for i in rows})
                where = "training" if datasets is None else f"dataset {', '.join(datasets)}"
                raise UserError(
                    f"context '{name}' is not in {where} (known: {', '.join(at)}); give one of these, or "
                    "control cells of the new context with --controls."
                )
        rows = [i for name in dict.fromkeys(names) for i in rows if vocabulary.contexts[i].name == name]
    return rows


def _listed(names: str | Sequence[str] | None) -> list[str] | None:
    if names is None:
        return None
    return [names] if isinstance(names, str) else list(names) or None


def read_targets(path: str) -> tuple[str, ...]:
    """Perturbations of a text file, one per line; a file without any is a UserError."""
    place = Location.of(path)
    if not place.exists():
        raise UserError(f"{place}: no such file; give a text file with one perturbation (A+B) per line.")
    try:
        text = place.read_bytes().decode("utf-8-sig")
    except (UnicodeDecodeError, OSError):
        raise UserError(
            f"{place}: not a text file; give one perturbation (A+B) per line, in UTF-8."
        ) from None
    found = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not found:
        raise UserError(f"{place}: names no perturbation; give one (A+B) per line.")
    return found
