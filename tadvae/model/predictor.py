"""What perturbations do to cells: the network's counterfactuals, mixed with a regression of mean effects."""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
import torch

from tadvae.cells.ragged import Cells
from tadvae.data.amounts import Pair, amounts_of
from tadvae.data.vocabulary import Vocabulary
from tadvae.effects.model import EffectModel
from tadvae.model.device import device_of, to_numpy
from tadvae.model.targets import why_unknown
from tadvae.nn.causal import Intervention
from tadvae.nn.network import TADVAEModule
from tadvae.nn.packed import PackedCells
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.covariates import AMOUNTS

ROWS_AT_ONCE = 16_384
"""Pairs of a perturbation and a control cell that are computed together."""
AT_ONCE = 1_024
"""Perturbations that are computed together by the regression and by the decoder."""

Pairs = Sequence[Pair]
"""Pairs of one perturbation, as indices of the model."""


class Predictor:
    """Predicts cells and mean profiles under perturbations, in terms of the model's indices.

    Parameters
    ----------
    module
        The network, in evaluation mode; what it computes is computed where it is.
    vocabulary
        What its indices mean.
    config
        Settings of its run: how targets are known, the temperature, the share of the regression.
    effects
        The regression of mean effects; None: predictions come from the network alone.
    """

    def __init__(
        self,
        module: TADVAEModule,
        vocabulary: Vocabulary,
        config: ExperimentConfig,
        effects: EffectModel | None = None,
    ) -> None:
        self.module = module
        self.vocabulary = vocabulary
        self.effects = effects
        self._known_by = config.model.causal.targets
        self._temperature = config.loss.temperature.at(config.train.epochs)  # where training ended
        self._share = config.effects.weight

    def unknown(self, target: int) -> str | None:
        """Why nothing can be predicted for a target; None if something can.

        The regression alone answers for a target that was never perturbed, if it shares pathways with one
        that was. Indices of ``len(vocabulary.targets)`` and above stand for genes of the vocabulary.
        """
        reason = self._unknown_to_network(target)
        if reason is None or target >= len(self._like_seen):
            return reason
        if self._like_seen[target]:
            return None
        return f"{reason}, and it shares no pathway with a target that was"

    @cached_property
    def _like_seen(self) -> np.ndarray:
        """Whether a target shares a pathway with a perturbed one, (n_targets,); empty: nothing is known."""
        similar = None if self.effects is None else self.effects.similar
        if similar is None:
            return np.empty(0, bool)
        seen = [i for i, each in enumerate(self.vocabulary.targets) if each.seen]
        return np.asarray((similar[:, seen] > 0).any(axis=1))

    def _unknown_to_network(self, target: int) -> str | None:
        return why_unknown(target, self.vocabulary, self._known_by)

    def known(self, perturbations: Sequence[Pairs]) -> list[list[Pair]]:
        """The perturbations without the targets that the network does not know."""
        return [
            [pair for pair in pairs if self._unknown_to_network(pair[0]) is None] for pairs in perturbations
        ]

    def regression_weight(self, dataset: int, context: int, perturbations: Sequence[Pairs]) -> np.ndarray:
        """Share of the regression in each mean, between 0 and 1, shape (M,); see :meth:`counterfactual`."""
        if self.effects is None:
            return np.zeros(len(perturbations))
        mixed = self.effects.is_between(dataset, context, perturbations)
        pairs = zip(self.known(perturbations), perturbations, strict=True)
        mixed &= [len(kept) == len(asked) for kept, asked in pairs]
        return np.where(mixed, self._share, 1.0)

    def counterfactual(
        self,
        cells: Cells,
        genes: np.ndarray,
        profile: np.ndarray,
        dataset: int,
        perturbations: Sequence[Pairs],
        context: int = -1,
    ) -> np.ndarray:
        """The cells under each of M perturbations, float32, shape (M, n, G).

        The network changes each cell; the mean change is then mixed with the regression's mean effect
        (``effects.weight``). The regression is used alone for a target that the network does not know, for a
        condition of training, whose mean it observed, and in a context where no effect was seen: there it
        predicts a cautious change, and the network does not. Without a target, cells stay as they are.

        Parameters
        ----------
        cells
            n control cells.
        genes
            Sorted vocabulary indices, shape (G,).
        profile
            Their context's mean control profile, shape (G,).
        dataset
            Model index of the dataset.
        perturbations
            (target, modality) model indices of each perturbation; none for the control.
        context
            Row of the vocabulary's contexts; −1: a new one.
        """
        predicted = self._network_cells(cells, genes, profile, dataset, self.known(perturbations))
        unchanged = [not pairs for pairs in perturbations]
        predicted[unchanged] = cells.dense(genes)
        if self.effects is None:
            return predicted
        effect = self.effects.predict(dataset, context, perturbations, genes, profile)  # (M, G)
        change = predicted.mean(axis=1, dtype=np.float64) - cells.dense(genes).mean(axis=0, dtype=np.float64)
        weight = self.regression_weight(dataset, context, perturbations)[:, None]  # (M, 1)
        correction = np.where(np.array(unchanged)[:, None], 0.0, weight * (effect - change))  # (M, G)
        result: np.ndarray = predicted + correction[:, None].astype(np.float32)
        return result

    def means(
        self,
        cells: Cells,
        genes: np.ndarray,
        profile: np.ndarray,
        dataset: int,
        perturbations: Sequence[Pairs],
        context: int = -1,
    ) -> np.ndarray:
        """Means over cells of :meth:`counterfactual` for thousands of perturbations, float32, shape (M, G).

        The decoder's last map is linear in h(u), so the mean over control cells is taken before it: one row
        per perturbation is decoded, not one per cell.
        """
        some = self.means_from(cells, genes, profile, dataset, context)
        result = np.empty((len(perturbations), len(genes)), np.float32)
        for part in _parts(len(perturbations), AT_ONCE):
            result[part] = some(perturbations[part])
        return result

    def means_from(
        self, cells: Cells, genes: np.ndarray, profile: np.ndarray, dataset: int, context: int = -1
    ) -> Callable[[Sequence[Pairs]], np.ndarray]:
        """:meth:`means` of about :data:`AT_ONCE` perturbations at a time; the cells are encoded once."""
        before = cells.dense(genes).mean(axis=0, dtype=np.float64)  # (G,)
        network = self._network_means(cells, genes, profile, dataset, before)

        def means(perturbations: Sequence[Pairs]) -> np.ndarray:
            result = np.empty((len(perturbations), len(genes)), np.float32)
            for part, found in network(self.known(perturbations)):
                result[part] = found
                if self.effects is not None:
                    effect = self.effects.predict(dataset, context, perturbations[part], genes, profile)
                    weight = self.regression_weight(dataset, context, perturbations[part])
                    result[part] += weight[:, None] * (effect - (found - before))
            result[[not pairs for pairs in perturbations]] = before
            return result

        return means

    # -- the network alone --------------------------------------------------------------------------

    def _network_cells(
        self,
        cells: Cells,
        genes: np.ndarray,
        profile: np.ndarray,
        dataset: int,
        perturbations: Sequence[Pairs],
    ) -> np.ndarray:
        """What the network makes of the cells, float32, shape (M, n, G)."""
        module, device = self.module, device_of(self.module)
        on = torch.from_numpy(genes).to(device)
        with torch.no_grad():
            shifts = self._shifts(dataset, perturbations)  # (M, K)
            z = self._latents(cells, genes)  # (n, K)
            before = module.decoder.hidden(module.causal(z))  # (n, d)
            dense = torch.from_numpy(cells.dense(genes)).to(device)
            offset = torch.from_numpy(profile).to(device)
            return np.stack(
                [
                    to_numpy(
                        module.counterfactual(
                            before, module.decoder.hidden(module.causal(z + shift)), dense, on, offset
                        )
                    )
                    for shift in shifts
                ]
            )

    def _network_means(
        self, cells: Cells, genes: np.ndarray, profile: np.ndarray, dataset: int, before: np.ndarray
    ) -> Callable[[Sequence[Pairs]], Iterator[tuple[slice, np.ndarray]]]:
        """What gives the network's means, some perturbations at a time: which, and their (m, G)."""
        module, device = self.module, device_of(self.module)
        on, offset = torch.from_numpy(genes).to(device), torch.from_numpy(profile).to(device)
        decoder, causal = module.decoder, module.causal

        def one_by_one(perturbations: Sequence[Pairs]) -> Iterator[tuple[slice, np.ndarray]]:
            each = max(ROWS_AT_ONCE // 16 // max(len(cells), 1), 1)
            for part in _parts(len(perturbations), each):
                found = self._network_cells(cells, genes, profile, dataset, perturbations[part])
                yield part, found.mean(axis=1, dtype=np.float64)

        if decoder.config.kind == "mlp":  # ends in a LeakyReLU: its mean is not the LeakyReLU of a mean
            return one_by_one
        with torch.no_grad():
            u = causal(self._latents(cells, genes))  # (n, K)
            centre = decoder.hidden(u).mean(0)  # (d,)
        each = max(ROWS_AT_ONCE // max(len(cells), 1), 1)

        @torch.no_grad()
        def decoded(perturbations: Sequence[Pairs]) -> np.ndarray:
            # the causal layer is linear: shifts go through it once, not once per cell
            moved = causal(self._shifts(dataset, perturbations))  # (m, K)
            hidden = torch.cat([decoder.hidden(u + some[:, None]).mean(1) for some in moved.split(each)])
            changed = decoder.config.counterfactual == "abduction"
            result: np.ndarray = to_numpy(
                decoder.change(hidden - centre, on) if changed else module.decode(hidden, on, offset)
            )
            return before + result if changed else result

        def together(perturbations: Sequence[Pairs]) -> Iterator[tuple[slice, np.ndarray]]:
            for part in _parts(len(perturbations), AT_ONCE):
                yield part, decoded(perturbations[part])

        return together

    def _latents(self, cells: Cells, genes: np.ndarray) -> torch.Tensor:
        """Latent means of cells on a gene list, shape (n, K)."""
        available = self.vocabulary.membership.availability(genes, self.vocabulary.min_measured)
        device = device_of(self.module)
        packed = PackedCells.of(cells, device, panels=[genes])
        _, z, _ = self.module.encode(packed, torch.from_numpy(available).to(device).expand(len(cells), -1))
        return z

    def _shifts(self, dataset: int, perturbations: Sequence[Pairs]) -> torch.Tensor:
        """What M perturbations add to the latents, shape (M, K)."""
        device = device_of(self.module)
        every = [(pair, i) for i, pairs in enumerate(perturbations) for pair in pairs]
        flat = [(*pair[:2], i) for pair, i in every]
        target, modality, bag = torch.tensor(flat, dtype=torch.int64).view(-1, 3).T.to(device)
        where = torch.full_like(target, dataset)
        amounts = None
        if self.vocabulary.amounts is not None:
            logs = [amounts_of(pair) for pair, _ in every]
            amounts = torch.tensor(logs, dtype=torch.float32).view(-1, len(AMOUNTS)).to(device)
        intervention = Intervention(target, modality, where, bag, len(perturbations), amounts)
        return self.module.causal.shifts(intervention, self.module.decoder.gene, self._temperature)


def _parts(n: int, each: int) -> Iterator[slice]:
    for start in range(0, n, each):
        yield slice(start, min(start + each, n))
