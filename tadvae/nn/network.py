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
from tadvae.nn.decoder import DecoderConfig, GeneDecoder, GeneRows
from tadvae.nn.edges import EdgeTable
from tadvae.nn.embedding import GivenVectors
from tadvae.nn.encoder import EncoderConfig
from tadvae.nn.latent import FactorLoadings, LatentConfig, sample
from tadvae.nn.linear_cells import LinearCells
from tadvae.nn.losses import (
    LossConfig,
    Products,
    expected_counts,
    kl_divergence,
    l1_norm,
    mmd,
    negative_binomial,
    published_bandwidths,
    weighted_sums,
)
from tadvae.nn.packed import ModelBatch, PackedCells
from tadvae.nn.precision import at_least_single
from tadvae.nn.response_curves import ResponseCurves
from tadvae.nn.strategies.base import STRATEGIES, PathwayConfig, PathwayLayer, pathway_layer
from tadvae.nn.vectors import given_vectors
from tadvae.store.covariates import AMOUNTS


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
                f"encoder '{self.encoder.kind}' needs tokens, and masking '{self.pathway.masking}' has none; "
                "use 'members'"
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
    columns: Tensor
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
            curves=response_curves(vocabulary),
        )
        if config.init == "normal":
            start_normal(self.pathway, self.factors, self.decoder)
        if loss.likelihood == "negative_binomial":
            self.log_dispersion = nn.Parameter(torch.zeros(n_genes))
        self.register_buffer("available", torch.from_numpy(vocabulary.available), persistent=False)
        columns = np.full((len(vocabulary.datasets), n_genes), -1, np.int64)  # of each gene in its panel
        place = np.zeros(len(vocabulary.contexts), np.int64)  # row of each context among its dataset's
        for i, dataset in enumerate(vocabulary.datasets):
            columns[i, dataset.genes] = np.arange(len(dataset.genes))
            self.register_buffer(f"genes_{i}", torch.from_numpy(dataset.genes), persistent=False)
            own = [c for c, context in enumerate(vocabulary.contexts) if context.dataset == i]
            place[own] = np.arange(len(own))
            profiles = [vocabulary.contexts[c].profile for c in own]
            stacked = np.stack(profiles) if profiles else np.empty((0, len(dataset.genes)), np.float32)
            self.register_buffer(f"profiles_{i}", torch.from_numpy(stacked), persistent=False)
        self.register_buffer("columns", torch.from_numpy(columns.ravel()), persistent=False)
        self.register_buffer("place", torch.from_numpy(place), persistent=False)

    def encode(self, cells: PackedCells, available: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Activities (B, P), latent means and log variances (B, K) or None; ``available``: (B, P) bool."""
        activity = self.pathway(cells)
        return activity, *self.factors(activity, available)

    @property
    def _by_products(self) -> bool:
        """Whether errors and distances are computed without decoding cells, as :class:`LinearCells` does."""
        # a GPU decodes fast, and waits for the number of operations, of which this has more
        decoder, on_cpu = self.config.decoder, self.available.device.type == "cpu"
        return on_cpu and decoder.decode == "residual" and decoder.counterfactual == "abduction"

    def decode(self, hidden: Tensor, genes: Tensor | GeneRows, profile: Tensor) -> Tensor:
        """Values on a gene list from h(u), shape (…, G); ``profile`` is the control profile (…, G)."""
        values = self.decoder(hidden, genes)
        result: Tensor = values + profile if self.config.decoder.decode == "residual" else values
        return result

    def counterfactual(
        self, before: Tensor, after: Tensor, cells: Tensor, genes: Tensor | GeneRows, profile: Tensor
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
        # before and after the perturbations of all bags at once, as everything that does not depend on genes
        shifted = z.index_select(0, batch.start) + shifts.index_select(0, batch.start_bag)  # (S, K)
        hidden = self.decoder.hidden(self.causal(torch.cat([z, shifted])))  # (B + S, d)
        ends = [part.perturbed.start.numel() for part in batch.datasets if part.perturbed is not None]
        before, *later = hidden.split([len(z), *ends])
        after = iter(later)
        filled = batch.layout.fill(batch.tokens, self.columns)
        zero = z.new_zeros(())
        reconstruction, discrepancy, matching, n_mmd, n_match = zero, zero, zero, 0, 0
        for part in batch.datasets:
            genes, profiles = (
                getattr(self, f"genes_{part.dataset}"),
                getattr(self, f"profiles_{part.dataset}"),
            )
            own = before[part.cells]  # (N, d)
            rows = self.decoder.of(genes)
            profile = profiles[self.place[part.contexts]]  # (c, G)
            encoded = filled.rows(part.encoded)
            linear = LinearCells.of(encoded, rows) if self._by_products else None
            if linear is not None and loss.likelihood == "gaussian":
                errors = linear.squared_errors(own, profile, part.context)  # (N,)
            else:
                decoded = self.decode(own, rows, profile[part.context])  # (N, G)
                errors = self._errors(decoded, encoded.values, part.per_unit, genes).mean(1)
            reconstruction = reconstruction + part.weight @ errors
            bags = part.perturbed
            if bags is None:
                continue
            observed = filled.rows(bags.observed)
            changed = next(after).unflatten(0, bags.start.shape)  # (b, n, d)
            if linear is not None:
                gap, products = linear.predict(changed - own[bags.start], bags, observed)
            else:
                start = encoded.values[bags.start], rows, profiles[self.place[bags.context]][:, None]
                predicted = self.counterfactual(own[bags.start], changed, *start)  # (b, n, G)
                seen = observed.values.view(*bags.observed_weight.shape, -1)  # (b, m, G)
                gap = weighted_sums(predicted, bags.start_weight) - weighted_sums(seen, bags.observed_weight)
                products = Products.of(predicted, seen) if bags.n_mmd else None
            matching = matching + (gap**2).mean(1).sum()
            n_match += len(bags.context)
            if products is not None:
                each = self._mmd(products, bags.start_weight, bags.observed_weight)  # (b,)
                discrepancy = discrepancy + bags.mmd_weight @ each
                n_mmd += bags.n_mmd
        terms = {
            "reconstruction": reconstruction,
            "mmd": discrepancy / max(n_mmd, 1),
            "mean_match": matching / max(n_match, 1),
            "kl": kl_divergence(mean, log_variance, loss.kl),
            "sparsity": l1_norm(self.causal.adjacency(), loss.l1),
        }
        curves = self.causal.curves
        if curves is not None:
            terms["curves"] = curves.deviation()
        total = (
            terms["reconstruction"]
            + loss.alpha.at(epoch) * terms["mmd"]
            + loss.mean_match * terms["mean_match"]
            + loss.beta.at(epoch) * terms["kl"]
            + loss.sparsity * terms["sparsity"]
        )
        if curves is not None:
            total = total + loss.curves * terms["curves"]
        return total, {"loss": total, **terms}

    def _errors(self, decoded: Tensor, encoded: Tensor, per_unit: Tensor, genes: Tensor) -> Tensor:
        """Reconstruction error of every value, shape (N, G)."""
        if self.loss_config.likelihood == "gaussian":
            return (decoded - encoded) ** 2
        counts = torch.expm1(encoded) * per_unit[:, None]
        expected = expected_counts(decoded, per_unit)
        return negative_binomial(counts, expected, self.log_dispersion[genes])

    def _mmd(self, products: Products, weight_x: Tensor, weight_y: Tensor) -> Tensor:
        """The MMD of every bag, (b,); of bags that it is not defined for, zero or not a number."""
        unbiased = self.loss_config.mmd == "unbiased"
        bandwidths = None
        if not unbiased:
            bandwidths = published_bandwidths(self.loss_config.sigma, weight_x.device).to(weight_x)
        return mmd(products, bandwidths, unbiased=unbiased, weight_x=weight_x, weight_y=weight_y)


def response_curves(vocabulary: Vocabulary) -> ResponseCurves | None:
    """Curves of the amounts that the vocabulary has; None: it has none."""
    amounts = vocabulary.amounts
    if amounts is None:
        return None
    used = np.array([name in amounts.units for name in AMOUNTS])
    centre, scale = np.array(amounts.centre), np.array(amounts.scale)
    return ResponseCurves(len(vocabulary.targets), used, centre, scale)


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
