"""The latent-additive baseline: effects are additive in a latent space, not in expression.

It is a small network, so it is not in ``BASELINES``, which have none; the evaluation adds it. It is
deterministic.
"""

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from tadvae.evaluation.baselines import Array, Baseline, Perturbation, Profiles
from tadvae.nn.adam import Adam


class LatentAdditiveNetwork(nn.Module):
    """``ŷ = D(E(x₀) + P(t))``: control profile ``x₀`` (G,), multi-hot targets ``t`` (n, T) → (n, G).

    E, P and D are perceptrons with one hidden layer; the output passes a softplus, since expression is
    never below zero, unless ``signed``: signatures are effects.
    """

    def __init__(self, n_genes: int, n_targets: int, width: int, n_latent: int, signed: bool = False) -> None:
        super().__init__()
        self.last = nn.Identity() if signed else nn.Softplus()
        self.encode = _perceptron(n_genes, width, n_latent)
        self.perturb = _perceptron(n_targets, width, n_latent)
        self.decode = _perceptron(n_latent, width, n_genes)

    def forward(self, control: Tensor, targets: Tensor) -> Tensor:
        """Predicted profiles, shape (n, G)."""
        result: Tensor = self.last(self.decode(self.encode(control) + self.perturb(targets)))
        return result


class LatentAdditive(Baseline):
    """PerturBench's latent-additive model, trained on the mean profiles of training conditions and control.

    A target that is in no training condition has no effect. Trained by Adam on the squared error, with
    ``STEPS`` full-batch steps.

    Source: PerturBench (Wu et al. 2024), where it is trained on single cells; here on means, as all
    baselines.
    """

    name = "latent_additive"
    WIDTH: ClassVar[int] = 128
    LATENT: ClassVar[int] = 32
    STEPS: ClassVar[int] = 500
    LEARNING_RATE: ClassVar[float] = 2e-3

    def _fit(self, profiles: Profiles) -> None:
        self._index = {t: i for i, t in enumerate(sorted({t for key in self.deltas for t in key}))}
        self._network: LatentAdditiveNetwork | None = None
        if not self._index:
            return
        keys: list[Perturbation] = [(), *self.deltas]
        goal = self.control + np.stack([np.zeros_like(self.control), *self.deltas.values()])  # (1 + N, G)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = LatentAdditiveNetwork(
                len(self.control), len(self._index), self.WIDTH, self.LATENT, signed=bool((goal < 0).any())
            )
        optimizer = Adam(network.parameters(), lr=self.LEARNING_RATE)
        control, targets = self._control(), self._multi_hot(keys)
        wanted = torch.from_numpy(goal.astype(np.float32))
        for _ in range(self.STEPS):
            optimizer.zero_grad(set_to_none=True)
            nn.functional.mse_loss(network(control, targets), wanted).backward()
            optimizer.step()
        self._network = network.eval()

    def _delta(self, key: Perturbation) -> Array:
        known = tuple(target for target in key if target in self._index)
        if self._network is None or not known:
            return np.zeros_like(self.control)
        with torch.no_grad():
            predicted = self._network(self._control(), self._multi_hot([known]))[0]
        result: Array = predicted.double().numpy() - self.control
        return result

    def _control(self) -> Tensor:
        return torch.from_numpy(self.control.astype(np.float32))

    def _multi_hot(self, keys: list[Perturbation]) -> Tensor:
        codes = torch.zeros(len(keys), len(self._index))  # (n, T)
        for row, key in zip(codes, keys, strict=True):
            row[[self._index[target] for target in key]] = 1.0
        return codes


def _perceptron(n_in: int, width: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, width), nn.ReLU(), nn.Linear(width, n_out))
