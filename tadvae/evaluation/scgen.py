"""The scGen baseline: latent arithmetic across contexts, for a context without any perturbation in training.

It is a network that is trained on cells, so it is not in ``BASELINES``; the evaluation adds it. It is
deterministic.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tadvae.evaluation.answers import Answer
from tadvae.evaluation.questions import Question
from tadvae.nn.adam import Adam

Array = NDArray[np.float32]
Context = int
Perturbation = int


def latent_shift(before: Sequence[Array], after: Sequence[Array]) -> NDArray[np.float64]:
    """``δ = mean over contexts of (mean z_after − mean z_before)``, shape (K,): every context counts once.

    Parameters
    ----------
    before, after
        Latent control and perturbed cells of each context, (n, K) each.
    """
    shifts = [
        b.mean(axis=0, dtype=np.float64) - a.mean(axis=0, dtype=np.float64)
        for a, b in zip(before, after, strict=True)
    ]
    result: NDArray[np.float64] = np.mean(shifts, axis=0)
    return result


class ScGen:
    """Cells of an unseen context: ``x̂ = x + D(E(x) + δ) − D(E(x))`` for its control cells x.

    E and D are a variational autoencoder of all training cells of a dataset and of the control cells of the
    unseen context; δ is :func:`latent_shift` of the perturbation over the contexts that have it. A
    perturbation that no context has is predicted by the mean δ of all.

    Source: scGen (Lotfollahi et al. 2019): latent of 100, dropout 0.2, batches of 32, rate 1e-3, KL weight
    5e-5. Differences: layers of 128 units instead of 800, and the change D(E(x) + δ) − D(E(x)) is added to
    the cell, where scGen takes D(E(x) + δ) alone: both make it better (``docs/experiments.md``).
    """

    name = "scgen"
    WIDTH: ClassVar[int] = 128
    LATENT: ClassVar[int] = 100
    EPOCHS: ClassVar[int] = 50
    MOST_STEPS: ClassVar[int] = 4000
    BATCH: ClassVar[int] = 32
    LEARNING_RATE: ClassVar[float] = 1e-3
    KL_WEIGHT: ClassVar[float] = 5e-5

    def fit(
        self, controls: Array, cells: Mapping[tuple[Context, Perturbation], Array], control: Perturbation
    ) -> "ScGen":
        """Train on log-normalised cells.

        Parameters
        ----------
        controls
            Control cells of the unseen context, (n, G).
        cells
            Training cells of the other contexts, (m, G) each, control cells among them.
        control
            The index of the control.
        """
        everything = torch.from_numpy(np.concatenate([controls, *cells.values()]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self._vae = VariationalAutoencoder(controls.shape[1], self.WIDTH, self.LATENT)
            self._train(everything)
        latent = {key: self._encode(each) for key, each in cells.items()}
        self.shift: dict[Perturbation, NDArray[np.float64]] = {}
        for perturbation in sorted({p for _, p in cells} - {control}):
            having = [c for c, p in cells if p == perturbation and (c, control) in cells]
            if having:
                before = [latent[c, control] for c in having]
                self.shift[perturbation] = latent_shift(before, [latent[c, perturbation] for c in having])
        self._controls, self._mean = controls, np.zeros(self.LATENT)
        if self.shift:
            self._mean = np.mean(list(self.shift.values()), axis=0)
        return self

    def cells(self, perturbation: Perturbation) -> Array:
        """Predicted cells of the unseen context, one per control cell, (n, G)."""
        shift = self.shift.get(perturbation, self._mean)
        return self._controls + self._decode(shift) - self._decode(np.zeros_like(shift))

    def answer(self, question: Question) -> Answer:
        """Predict every group of a question, whose control cells the model was fitted with."""
        cells = np.stack([self.cells(p) for p in question.perturbations])  # (M, n, G)
        change = cells.mean(axis=1, dtype=np.float64) - self._controls.mean(axis=0, dtype=np.float64)
        mean = question.control + change  # the control cells are a sample, their mean profile is of all
        return Answer(mean, np.zeros_like(mean), cells, {})

    def decoded(self, perturbation: Perturbation) -> Array:
        """``D(E(x) + δ)`` alone, as published, (n, G)."""
        return self._decode(self.shift.get(perturbation, self._mean))

    def _decode(self, shift: NDArray[np.float64]) -> Array:
        with torch.no_grad():
            z = torch.from_numpy(self._encode(self._controls) + shift.astype(np.float32))
            result: Array = self._vae.decode(z).numpy()
        return result

    def _encode(self, cells: Array) -> Array:
        with torch.no_grad():
            result: Array = self._vae.encode(torch.from_numpy(cells))[0].numpy()
        return result

    def _train(self, cells: Tensor) -> None:
        optimizer = Adam(self._vae.parameters(), lr=self.LEARNING_RATE)
        per_epoch = max(len(cells) // self.BATCH, 1)  # a batch of one cell has no batch norm: rest left out
        order = torch.empty(0, dtype=torch.int64)
        for step in range(min(self.EPOCHS * per_epoch, self.MOST_STEPS)):
            at = step % per_epoch
            if at == 0:
                order = torch.randperm(len(cells))
            x = cells[order[at * self.BATCH : (at + 1) * self.BATCH]]
            mean, log_variance = self._vae.encode(x)
            decoded = self._vae.decode(mean + torch.randn_like(mean) * (log_variance / 2).exp())
            kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1).mean()
            loss = 0.5 * ((decoded - x) ** 2).sum(1).mean() + 0.5 * self.KL_WEIGHT * kl
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        self._vae.eval()


class VariationalAutoencoder(nn.Module):
    """Two hidden layers each way, with batch norm and dropout, as scGen's."""

    def __init__(self, n_genes: int, width: int, n_latent: int) -> None:
        super().__init__()
        self._hidden = nn.Sequential(*_layer(n_genes, width), *_layer(width, width))
        self._mean, self._log_variance = nn.Linear(width, n_latent), nn.Linear(width, n_latent)
        self._decoder = nn.Sequential(
            *_layer(n_latent, width), *_layer(width, width), nn.Linear(width, n_genes)
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the latent of cells (n, G), (n, K) each."""
        hidden = self._hidden(x)
        return self._mean(hidden), self._log_variance(hidden)

    def decode(self, z: Tensor) -> Tensor:
        """Cells (n, G) of latents (n, K)."""
        result: Tensor = self._decoder(z)
        return result


def _layer(n_in: int, n_out: int) -> list[nn.Module]:
    return [nn.Linear(n_in, n_out), nn.BatchNorm1d(n_out), nn.LeakyReLU(0.01), nn.Dropout(0.2)]
