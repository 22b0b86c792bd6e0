"""Dose and time of perturbations in a model's terms: logarithms, and what training has seen of them."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tadvae.base.errors import UserError, require
from tadvae.store.covariates import AMOUNTS

log = logging.getLogger("tadvae")

Pair = tuple[int, int] | tuple[int, int, float, float]
"""Target and modality of a perturbation, and the logarithms of its dose and time where a store has them; NaN:
it has none."""


def amounts_of(pair: Sequence[float]) -> tuple[float, float]:
    """Logarithms of dose and time of a pair; NaN: it has none."""
    return (float(pair[2]), float(pair[3])) if len(pair) > 2 else (np.nan, np.nan)


@dataclass(frozen=True)
class SeenAmounts:
    """The doses and times of a model's training.

    Attributes
    ----------
    units
        Unit by name, ``dose`` or ``time``, of those that the model reads.
    centre, scale
        Mean and standard deviation of the logarithms over the training perturbations, in the order of
        :data:`tadvae.store.covariates.AMOUNTS`; the network reads amounts relative to them. Zero and one for
        an amount that the model does not read.
    seen
        For each dataset, the amounts of each target in training, as logarithms: (dose, time); None: not
        given.
    """

    units: dict[str, str]
    centre: list[float]
    scale: list[float]
    seen: list[dict[int, list[list[float | None]]]]

    @classmethod
    def read(cls, text: dict[str, Any]) -> "SeenAmounts":
        """What was written as JSON, whose keys are texts."""
        seen = [{int(target): found for target, found in each.items()} for each in text["seen"]]
        return cls(text["units"], text["centre"], text["scale"], seen)

    def check(self, n_datasets: int, n_targets: int) -> None:
        """Raise a ValueError if what was read from a file does not fit the model."""
        require(set(self.units) <= set(AMOUNTS) and bool(self.units), "unknown amounts")
        require(all(isinstance(unit, str) for unit in self.units.values()), "a unit is no text")
        numbers = [*self.centre, *self.scale, *(v for v in self._values() if v is not None)]
        require(all(isinstance(v, float) and np.isfinite(v) for v in numbers), "an amount is no number")
        require(len(self.centre) == len(self.scale) == len(AMOUNTS), "other amounts")
        require(all(each > 0 for each in self.scale), "amounts without a scale")
        require(len(self.seen) == n_datasets, "amounts of other datasets")
        targets = {target for each in self.seen for target in each}
        require(all(0 <= target < n_targets for target in targets), "amounts of unknown targets")

    def _values(self) -> Iterable[float | None]:
        for each in self.seen:
            for found in each.values():
                for amounts in found:
                    yield from amounts

    def complete(
        self,
        pairs: Sequence[tuple[int, int]],
        dataset: int,
        names: Sequence[str],
        asked: Sequence[float | None],
    ) -> list[Pair]:
        """Pairs with the amounts that were asked for; else with the largest that training has seen.

        An amount beyond those seen is said by the logger ``tadvae``.

        Parameters
        ----------
        names
            Name of the target of each pair.
        asked
            Dose and time; None: not said.
        """
        found: list[Pair] = []
        for pair, name in zip(pairs, names, strict=True):
            logs: list[float] = []
            for place, (word, amount) in enumerate(zip(AMOUNTS, asked, strict=True)):
                known = [v for v in self._seen(dataset, pair[0], place) if v is not None]
                if amount is None or word not in self.units:
                    logs.append(max(known) if known else np.nan)
                    continue
                logs.append(float(np.log(amount)))
                low, high = (np.exp(known).min(), np.exp(known).max()) if known else (np.nan, np.nan)
                if known and not low * (1 - 1e-6) <= amount <= high * (1 + 1e-6):
                    log.warning(
                        "%s of %g%s for '%s' is beyond those of training (%g to %g%s): the prediction is "
                        "that of a curve which nothing has tested there.",
                        word,
                        amount,
                        self.units[word],
                        name,
                        low,
                        high,
                        self.units[word],
                    )
            found.append((*pair, logs[0], logs[1]))
        return found

    def _seen(self, dataset: int, target: int, place: int) -> list[float | None]:
        """One amount of a target in a dataset; where it was not tested, that of all of its targets."""
        of_dataset = self.seen[dataset]
        chosen = [of_dataset[target]] if target in of_dataset else list(of_dataset.values())
        return [amounts[place] for each in chosen for amounts in each]


def require_amounts(seen: SeenAmounts | None, asked: Sequence[float | None]) -> None:
    """Raise a UserError for a dose or a time that a model does not read, or that is not above zero."""
    for word, amount in zip(AMOUNTS, asked, strict=True):
        if amount is None:
            continue
        if seen is None or word not in seen.units:
            raise UserError(
                f"--{word} {amount:g}: this model was trained without a {word}; leave it out, or convert the "
                f"screens with 'covariates: {{{word}: …}}' and train again."
            )
        if not (np.isfinite(amount) and amount > 0):
            raise UserError(
                f"--{word} {amount:g}: expected a number above 0, in {seen.units[word] or 'its unit'}."
            )
