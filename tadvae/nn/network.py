"""The network and its training loss: tokens → activities → factors → causal layer → genes."""

from typing import Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn

from tadvae.base.config import Config
from tadvae.data.vocabulary import Vocabulary
from tadvae.nn.candidates import candidate_edges
from tadvae.nn.causal import CausalConfig, CausalLayer
from tadvae.nn.decoder import DecoderConfig, GeneDecoder
from tadvae.nn.edges import EdgeTable
from tadvae.nn.embedding import GivenVectors
from tadvae.nn.encoder import EncoderConfig
from tadvae.nn.latent import FactorLoadings, LatentConfig, sample
from tadvae.nn.losses import (
    LossConfig,
    expected_counts,
    kl_divergence,
    l1_norm,
    mmd,
    negative_binomial,
    published_bandwidths,
)
from tadvae.nn.packed import ModelBatch, PackedCells, PackedTokens, Perturbed
from tadvae.nn.precision import at_least_single
from tadvae.nn.strategies.base import STRATEGIES, PathwayConfig, PathwayLayer, pathway_layer
from tadvae.nn.vectors import given_vectors


class ModelConfig(Config):
    """The parts of the network."""

    pathway: PathwayConfig = PathwayConfig()
    """From genes to pathway activities."""
    encoder: EncoderConfig = EncoderConfig()
    """Optional transformer over the genes of a cell."""
    latent: LatentConfig = LatentConfig()
    """From pathway activities to latent factors."""
    causal: CausalConfig = CausalConfig()
    """Effects of perturbations on latent factors."""
    decoder: DecoderConfig = DecoderConfig()
    """From latent factors to genes."""
    init: Literal["scaled", "normal"] = "scaled"
    """How weights start.

    - ``scaled``: each part in its own way; use it for training from scratch.
    - ``normal``: all weights from N(0, 0.02) and no biases, as the discrepancy VAE; use it to reproduce that
      publication.
    """

    @model_validator(mode="after")
    def _encoder_has_tokens(self) -> "ModelConfig":
        if self.encoder.kind != "none" and not STRATEGIES[self.pathway.masking].has_tokens:
            raise ValueError(
                f"encoder '{self.encoder.kind}' needs tokens, and masking '{self.pathway.masking}' has none"
            )
        return self

    @model_validator(mode="after")
    def _decoder_suits(self) -> "ModelConfig":
        if self.decoder.kind == "mlp" and (
            self.decoder.decode != "direct" or self.decoder.counterfactual != "mean"
        ):
            raise ValueError(
                "decoder 'mlp' ends in a LeakyReLU: it needs decode 'direct', counterfactual 'mean'"
            )
        return self


class TADVAEModule(nn.Module):
    """Parameters and equations of the network; the public API is :class:`tadvae.model.tadvae.TADVAE`.

    ``forward`` returns the loss of a batch, so that DDP sees every use of a parameter.

    Parameters
    ----------
    files
        Whether to read the files of vectors that the config names; not needed if weights are loaded later.
    """

    available: Tensor
    place: Tensor

    def __init__(
        self, config: ModelConfig, loss: LossConfig, vocabulary: Vocabulary, files: bool = True
    ) -> None:
        super().__init__()
        self.config, self.loss_config = config, loss
        n_genes = vocabulary.n_genes
        given = given_vectors(config.pathway, vocabulary) if files else None
        self.pathway = build_pathways(config, vocabulary, given)
        n_pathways, causal = vocabulary.membership.n_pathways, config.causal
        if config.latent.kind == "identity":
            causal = causal.model_copy(update={"n_factors": n_pathways})
        self.factors = FactorLoadings(n_pathways, causal.n_factors, config.latent)
        self.decoder = GeneDecoder(config.decoder, causal.n_factors, n_genes)
        self.causal = CausalLayer(
            causal,
            target_gene=torch.tensor([t.gene for t in vocabulary.targets], dtype=torch.int64),
            signs=torch.tensor(vocabulary.signs),
            n_datasets=len(vocabulary.datasets),
            d_gene=self.decoder.width,
        )
        if config.init == "normal":
            start_normal(self.pathway, self.factors, self.decoder)
        if loss.likelihood == "negative_binomial":
            self.log_dispersion = nn.Parameter(torch.zeros(n_genes))
        self.register_buffer("available", torch.from_numpy(vocabulary.available), persistent=False)
        place = np.zeros(len(vocabulary.contexts), np.int64)  # row of each context among its dataset's
        for i, dataset in enumerate(vocabulary.datasets):
            column = np.full(n_genes, -1, np.int64)
            column[dataset.genes] = np.arange(len(dataset.genes))
            self.register_buffer(f"genes_{i}", torch.from_numpy(dataset.genes), persistent=False)
            self.register_buffer(f"column_{i}", torch.from_numpy(column), persistent=False)
            own = [c for c, context in enumerate(vocabulary.contexts) if context.dataset == i]
            place[own] = np.arange(len(own))
            profiles = [vocabulary.contexts[c].profile for c in own]
            stacked = np.stack(profiles) if profiles else np.empty((0, len(dataset.genes)), np.float32)
            self.register_buffer(f"profiles_{i}", torch.from_numpy(stacked), persistent=False)
        self.register_buffer("place", torch.from_numpy(place), persistent=False)

    def encode(self, cells: PackedCells, available: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Activities (B, P), latent means and log variances (B, K) or None; ``available``: (B, P) bool."""
        activity = self.pathway(cells)
        return activity, *self.factors(activity, available)

    def decode(self, hidden: Tensor, genes: Tensor, profile: Tensor) -> Tensor:
        """Values on a gene list from h(u), shape (…, G); ``profile`` is the control profile (…, G)."""
        values = self.decoder(hidden, genes)
        result: Tensor = values + profile if self.config.decoder.decode == "residual" else values
        return result

    def counterfactual(
        self, before: Tensor, after: Tensor, cells: Tensor, genes: Tensor, profile: Tensor
    ) -> Tensor:
        """Values of cells under a perturbation, shape (…, n, G), from h(u) before and after it."""
        if self.config.decoder.counterfactual == "abduction":
            return cells + self.decoder.change(after - before, genes)
        return self.decode(after, genes, profile)

    def forward(
        self, batch: ModelBatch, epoch: float, generator: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one batch, and its terms by name.

        Parameters
        ----------
        batch
            Bags of cells as tensors.
        epoch
            Epoch, which may be a fraction; the schedules depend on it.
        generator
            Source of the reparameterisation noise.
        """
        _, mean, log_variance = self.encode(batch.cells, self.available[batch.dataset])
        # All that follows is about small differences of large numbers (after − before, distances of cells),
        # which half precision loses: autocast ends here.
        with torch.autocast(mean.device.type, enabled=False):
            return self._loss(batch, at_least_single(mean), at_least_single(log_variance), epoch, generator)

    def _loss(
        self,
        batch: ModelBatch,
        mean: Tensor,
        log_variance: Tensor | None,
        epoch: float,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss from the latent variables (B, K) of the encoded cells; see :meth:`forward`."""
        loss = self.loss_config
        z = sample(mean, log_variance, generator)  # (B, K)
        shifts = self.causal.shifts(batch.intervention, self.decoder.gene, loss.temperature.at(epoch))
        zero = z.new_zeros(())
        reconstruction, discrepancy, matching, n_mmd, n_match = zero, zero, zero, 0, 0
        for part in batch.datasets:
            genes, profiles = (
                getattr(self, f"genes_{part.dataset}"),
                getattr(self, f"profiles_{part.dataset}"),
            )
            encoded = self.dense(batch.tokens, part.dataset, part.cells)  # (N, G)
            own = z[part.cells]  # (N, K)
            before = self.decoder.hidden(self.causal(own))  # (N, d)
            decoded = self.decode(before, genes, profiles[self.place[part.context]])  # (N, G)
            errors = self._errors(decoded, encoded, part.per_unit, genes).mean(1)  # (N,)
            reconstruction = reconstruction + part.weight.to(errors.dtype) @ errors
            bags = part.perturbed
            if bags is None:
                continue
            shifted = own[bags.start] + shifts[bags.bag][:, None]  # (b, n, K)
            after = self.decoder.hidden(self.causal(shifted.flatten(0, 1))).unflatten(0, bags.start.shape)
            predicted = self.counterfactual(
                before[bags.start],
                after,
                encoded[bags.start],
                genes,
                profiles[self.place[bags.context]][:, None],
            )  # (b, n, G)
            observed = self.dense(batch.tokens, part.dataset, bags.cells, bags.row, bags.is_observed.numel())
            observed = observed.unflatten(0, bags.is_observed.shape)  # (b, m, G)
            gap = _mean_of(predicted, bags.is_start) - _mean_of(observed, bags.is_observed)  # (b, G)
            matching = matching + (gap**2).mean(1).sum()
            n_match += len(bags.bag)
            if bags.n_mmd:
                discrepancy = discrepancy + self._mmd(predicted, observed, bags)
                n_mmd += bags.n_mmd
        terms = {
            "reconstruction": reconstruction,
            "mmd": discrepancy / max(n_mmd, 1),
            "mean_match": matching / max(n_match, 1),
            "kl": kl_divergence(mean, log_variance, loss.kl),
            "sparsity": l1_norm(self.causal.adjacency(), loss.l1),
        }
        total = (
            terms["reconstruction"]
            + loss.alpha.at(epoch) * terms["mmd"]
            + loss.mean_match * terms["mean_match"]
            + loss.beta.at(epoch) * terms["kl"]
            + loss.sparsity * terms["sparsity"]
        )
        # A batch of only control bags uses no shifts, but DDP waits for a gradient of every parameter.
        total = total + 0.0 * shifts.sum()
        return total, {"loss": total, **terms}

    def dense(
        self,
        tokens: PackedTokens,
        dataset: int,
        cells: slice,
        row: Tensor | None = None,
        n_rows: int | None = None,
    ) -> Tensor:
        """Values of cells on the genes of their dataset, shape (n, G); see :meth:`PackedTokens.dense`."""
        genes, column = getattr(self, f"genes_{dataset}"), getattr(self, f"column_{dataset}")
        return tokens.dense(cells, column, len(genes), row, n_rows)

    def _errors(self, decoded: Tensor, encoded: Tensor, per_unit: Tensor, genes: Tensor) -> Tensor:
        """Reconstruction error of every value, shape (N, G)."""
        if self.loss_config.likelihood == "gaussian":
            return (decoded - encoded) ** 2
        counts = torch.expm1(encoded) * per_unit[:, None]
        expected = expected_counts(decoded, per_unit)
        return negative_binomial(counts, expected, self.log_dispersion[genes])

    def _mmd(self, predicted: Tensor, observed: Tensor, bags: Perturbed) -> Tensor:
        """Sum of the MMD over the bags with at least two cells on both sides."""
        unbiased = self.loss_config.mmd == "unbiased"
        bandwidths = None
        if not unbiased:
            bandwidths = published_bandwidths(self.loss_config.sigma).to(observed)
        each = mmd(
            predicted, observed, bandwidths, unbiased=unbiased, real_x=bags.is_start, real_y=bags.is_observed
        )
        counts = (bags.is_start.sum(1) > 1) & (bags.is_observed.sum(1) > 1)
        return (each * counts).sum()


def _mean_of(rows: Tensor, real: Tensor) -> Tensor:
    """Mean over the cells (b, n, G) of each bag, without padding, shape (b, G)."""
    weight = real.to(rows) / real.sum(1, keepdim=True)  # (b, n)
    return (weight[:, None] @ rows).squeeze(1)


def start_normal(*parts: nn.Module, deviation: float = 0.02) -> None:
    """Draw all weights from N(0, 0.02) and set biases to zero, as the code of Zhang et al. 2023."""
    for part in parts:
        for name, parameter in part.named_parameters():
            if name.rsplit(".", 1)[-1] == "bias":
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, 0.0, deviation)


def build_pathways(config: ModelConfig, vocabulary: Vocabulary, given: GivenVectors | None) -> PathwayLayer:
    """Build the pathway layer with its encoder, on the edges of the vocabulary."""
    candidates = None
    if config.pathway.candidates:
        candidates = candidate_edges(vocabulary.membership, config.pathway.candidates)
    edges = EdgeTable(vocabulary.membership, vocabulary.n_genes, candidates)
    return pathway_layer(config.pathway, edges, config.encoder, given)
