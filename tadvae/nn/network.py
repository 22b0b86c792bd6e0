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
    median_bandwidths,
    mmd,
    negative_binomial,
    published_bandwidths,
)
from tadvae.nn.packed import ModelBatch, PackedCells, PackedTokens
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
        for i, dataset in enumerate(vocabulary.datasets):
            column = np.full(n_genes, -1, np.int64)
            column[dataset.genes] = np.arange(len(dataset.genes))
            self.register_buffer(f"genes_{i}", torch.from_numpy(dataset.genes), persistent=False)
            self.register_buffer(f"column_{i}", torch.from_numpy(column), persistent=False)
        for i, context in enumerate(vocabulary.contexts):
            self.register_buffer(f"profile_{i}", torch.from_numpy(context.profile), persistent=False)

    def encode(self, cells: PackedCells, available: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Activities (B, P), latent means and log variances (B, K) or None; ``available``: (B, P) bool."""
        activity = self.pathway(cells)
        return activity, *self.factors(activity, available)

    def decode(self, hidden: Tensor, genes: Tensor, profile: Tensor) -> Tensor:
        """Values on a gene list from h(u), shape (B, G); ``profile`` is the control profile (G,)."""
        values = self.decoder(hidden, genes)
        result: Tensor = values + profile if self.config.decoder.decode == "residual" else values
        return result

    def counterfactual(
        self, before: Tensor, after: Tensor, cells: Tensor, genes: Tensor, profile: Tensor
    ) -> Tensor:
        """Values of cells under a perturbation, shape (n, G), from h(u) before and after it."""
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
        loss = self.loss_config
        _, mean, log_variance = self.encode(batch.cells, self.available[batch.dataset])
        z = sample(mean, log_variance, generator)  # (B, K)
        shifts = self.causal.shifts(batch.intervention, self.decoder.gene, loss.temperature.at(epoch))
        zero = z.new_zeros(())
        reconstruction, discrepancy, matching, n_mmd, n_match = zero, zero, zero, 0, 0
        for i, bag in enumerate(batch.bags):
            genes, profile = getattr(self, f"genes_{bag.dataset}"), getattr(self, f"profile_{bag.context}")
            encoded = self.dense(batch.tokens, bag.rows, bag.dataset)  # (n, G)
            before = self.decoder.hidden(self.causal(z[bag.rows]))  # (n, d)
            decoded = self.decode(before, genes, profile)  # (n, G)
            reconstruction = reconstruction + self._reconstruction(decoded, encoded, bag.per_unit, genes)
            if bag.observed is None:
                continue
            after = self.decoder.hidden(self.causal(z[bag.rows] + shifts[i]))  # (n, d)
            predicted = self.counterfactual(before, after, encoded, genes, profile)  # (n, G)
            observed = self.dense(batch.tokens, bag.observed, bag.dataset)  # (m, G)
            matching = matching + ((predicted.mean(0) - observed.mean(0)) ** 2).mean()
            n_match += 1
            if min(len(predicted), len(observed)) > 1:
                discrepancy = discrepancy + self._mmd(predicted, observed)
                n_mmd += 1
        terms = {
            "reconstruction": reconstruction / len(batch.bags),
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

    def dense(self, tokens: PackedTokens, rows: slice, dataset: int) -> Tensor:
        """Values of some cells on the genes of their dataset, shape (n, G)."""
        genes, column = getattr(self, f"genes_{dataset}"), getattr(self, f"column_{dataset}")
        return tokens.dense(rows, column, len(genes))

    def _reconstruction(self, decoded: Tensor, encoded: Tensor, per_unit: Tensor, genes: Tensor) -> Tensor:
        if self.loss_config.likelihood == "gaussian":
            return ((decoded - encoded) ** 2).mean()
        counts = torch.expm1(encoded) * per_unit[:, None]
        expected = expected_counts(decoded, per_unit)
        return negative_binomial(counts, expected, self.log_dispersion[genes])

    def _mmd(self, predicted: Tensor, observed: Tensor) -> Tensor:
        if self.loss_config.mmd == "biased":
            bandwidths = published_bandwidths(self.loss_config.sigma).to(observed.device)
            return mmd(predicted, observed, bandwidths, unbiased=False)
        return mmd(predicted, observed, median_bandwidths(observed), unbiased=True)


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
