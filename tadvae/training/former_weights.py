"""What fine-tuning keeps of the weights that it begins with.

Source of the anchor: Li et al. 2018 (L2-SP), a penalty ``λ/2 ‖w − w₀‖²`` on the distance from the pretrained
weights; here it is on the entries that the former network had, and not on those of new genes or targets.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tadvae.data.vocabulary import Vocabulary
from tadvae.nn.growth import Kind, rows_of
from tadvae.nn.network import TADVAEModule
from tadvae.settings.experiment import ExperimentConfig


def former_genes(vocabulary: Vocabulary) -> np.ndarray:
    """Whether the model that was fine-tuned learned of a gene, bool, (n_genes,)."""
    assert vocabulary.origin is not None
    result = np.zeros(vocabulary.n_genes, bool)
    for entry in vocabulary.datasets[: vocabulary.origin.n_datasets]:
        result[entry.genes] = True
    targets = np.array([t.gene for t in vocabulary.targets[: vocabulary.origin.n_targets]], np.int64)
    result[targets[targets >= 0]] = True
    return result


@dataclass(frozen=True)
class _Held:
    """The start of one weight, and which of its entries are former ones, in a shape that broadcasts."""

    start: Tensor
    former: Tensor


class FormerWeights:
    """Changes the gradients of former weights, after a backward pass and before the optimizer's step.

    Parameters
    ----------
    module
        The network at its start.
    vocabulary
        With the origin of the model.
    config
        ``train.former`` and ``train.anchor``.
    """

    def __init__(self, module: TADVAEModule, vocabulary: Vocabulary, config: ExperimentConfig) -> None:
        assert vocabulary.origin is not None
        self._strength = config.train.anchor if config.train.former == "anchored" else None
        genes = torch.from_numpy(former_genes(vocabulary))
        origin = vocabulary.origin

        def first(n: int, size: int) -> Tensor:
            return torch.arange(size) < n

        of_kind: dict[Kind, Tensor] = {
            "gene": genes,
            "edge": genes[module.pathway.edges.gene.cpu()],
            "target": first(origin.n_targets, len(vocabulary.targets)),
            "modality": first(origin.n_modalities, len(vocabulary.modalities)),
            "dataset": first(origin.n_datasets, len(vocabulary.datasets)),
        }
        rows = rows_of(module)
        amounts = vocabulary.amounts  # whether the former screens had doses or times
        of_former = amounts is not None and any(amounts.seen[: origin.n_datasets])
        self._held: dict[str, _Held] = {}
        for name, value in module.named_parameters():
            former = torch.ones(1, dtype=torch.bool)
            if name in rows:
                axis, kind = rows[name]
                shape = [1] * value.dim()
                shape[axis] = value.shape[axis]
                former = torch.zeros(value.shape[axis], dtype=torch.bool)
                former[: len(of_kind[kind])] = of_kind[kind]
                former = former.view(shape)
            if name.startswith("causal.curves.") and not of_former:
                former = torch.zeros(1, dtype=torch.bool)
            self._held[name] = _Held(value.detach().clone(), former.to(value.device))

    @torch.no_grad()
    def hold(self, module: TADVAEModule) -> None:
        """Set the gradients of former weights to zero, or add those of the anchor."""
        for name, value in module.named_parameters():
            if value.grad is None:
                continue
            held = self._held[name]
            if self._strength is None:
                value.grad.masked_fill_(held.former, 0.0)
            else:
                value.grad.add_(self._strength * (value - held.start) * held.former)
