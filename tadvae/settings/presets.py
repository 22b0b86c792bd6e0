"""Presets: published models, and the recommended one, as complete configurations of the same parts.

A preset is a function that returns a config; :data:`PRESETS` names them. Constants are those of the
publications and their code: discrepancy VAE (Zhang et al. 2023), SENA (de la Fuente et al. 2025) and
NetActivity (Ruiz-Arenas et al. 2024). ``docs/model.md`` lists how each preset differs from its publication.
"""

from collections.abc import Callable, Mapping
from typing import Any

from tadvae.base.errors import UserError
from tadvae.cells.normalize import PreprocessConfig
from tadvae.data.plan import StreamConfig
from tadvae.effects.model import EffectsConfig
from tadvae.nn.causal import CausalConfig
from tadvae.nn.decoder import DecoderConfig
from tadvae.nn.encoder import EncoderConfig
from tadvae.nn.latent import LatentConfig
from tadvae.nn.losses import LossConfig, Schedule
from tadvae.nn.network import ModelConfig
from tadvae.nn.strategies.base import PathwayConfig
from tadvae.settings.experiment import ExperimentConfig, PathwaysConfig, TrainConfig

EPOCHS = 100
"""Epochs of the discrepancy VAE and of SENA; their schedules are defined in these, and end with them."""
CELLS = 32
"""Perturbed cells per step of the discrepancy VAE and of SENA: one perturbation per batch."""


def tadvae() -> ExperimentConfig:
    """The recommended model: all defaults."""
    return ExperimentConfig()


def dvae() -> ExperimentConfig:
    """Discrepancy VAE (Zhang et al. 2023): a hidden layer of 128 units, 105 factors."""
    return ExperimentConfig(
        pathways=PathwaysConfig(units=128),
        stream=_published_stream(),
        model=ModelConfig(
            pathway=PathwayConfig(masking="linear"),
            latent=LatentConfig(variance="softplus"),
            causal=_published_causal(),
            decoder=DecoderConfig(kind="mlp", d_gene=128, decode="direct", counterfactual="mean"),
            init="normal",
        ),
        loss=_published_loss(alpha=10.0, beta=2.0, temperature=5.0, sigma=1000.0),
        effects=EffectsConfig(weight=0.0),
        train=_published_training(),
    )


def sena(leak: float = 0.0) -> ExperimentConfig:
    """SENA (de la Fuente et al. 2025): one unit per pathway; genes outside have the weight ``leak`` (λ)."""
    config = dvae()
    return config.model_copy(
        update={
            "pathways": PathwaysConfig(),
            "model": config.model.model_copy(
                update={
                    "pathway": PathwayConfig(masking="linear", leak=leak, weight_init="genes"),
                    "init": "scaled",
                }
            ),
            "loss": _published_loss(alpha=1.0, beta=1.0, temperature=100.0, sigma=200.0).model_copy(
                update={"kl": "mean", "l1": "mean", "sparsity": 0.1}
            ),
        }
    )


def netactivity() -> ExperimentConfig:
    """NetActivity (Ruiz-Arenas et al. 2024): pathways are the code of an autoencoder, decoded linearly.

    Shifts, which the publication does not have, act on pathways. The three steps of its training (each set
    alone, 25 epochs; decoder alone, 20; everything, 50) are one here, with the rate and batch of the last
    and the epochs of all three.
    """
    return ExperimentConfig(
        stream=StreamConfig(bags_per_batch=2, cells_per_bag=64),
        model=ModelConfig(
            pathway=PathwayConfig(masking="linear"),
            latent=LatentConfig(kind="identity", activation="elu"),
            causal=CausalConfig(graph=False, shift="free", scales=False, sign_prior="none"),
            decoder=DecoderConfig(kind="linear", decode="direct", counterfactual="mean"),
        ),
        loss=LossConfig(beta=Schedule(high=0.0), sparsity=0.0),
        effects=EffectsConfig(weight=0.0),
        train=_published_training(epochs=25 + 20 + 50),
    )


def tadvae_paper() -> ExperimentConfig:
    """T-AD-VAE as in the paper; what the paper leaves open is set as in the discrepancy VAE.

    The paper names no loss, schedule, learning rate, batch or epochs. Of its 2,000 to 5,000 variable genes
    these are 2,000, and its encoder attends through inducing points: full attention between all genes took
    more than ten times as long.
    """
    return ExperimentConfig(
        preprocess=PreprocessConfig(normalize="cpm", n_top_genes=2000),
        stream=_published_stream(),
        model=ModelConfig(
            pathway=PathwayConfig(
                masking="soft",
                tokens="all",
                candidates="all",
                pathway_init="learned",
                d_embed=128,
                n_heads=8,
            ),
            encoder=EncoderConfig(kind="inducing", n_layers=2),
            latent=LatentConfig(variance="softplus"),
            causal=_published_causal(),
            decoder=DecoderConfig(kind="mlp", d_gene=128, decode="direct", counterfactual="mean"),
        ),
        loss=_published_loss(alpha=10.0, beta=2.0, temperature=5.0, sigma=1000.0),
        effects=EffectsConfig(weight=0.0),
        train=_published_training(),
    )


PRESETS: Mapping[str, Callable[[], ExperimentConfig]] = {
    "tadvae": tadvae,
    "tadvae-paper": tadvae_paper,
    "dvae": dvae,
    "sena": sena,
    "sena-1e-3": lambda: sena(1e-3),
    "sena-1e-2": lambda: sena(1e-2),
    "netactivity": netactivity,
}


def settings_of(name: str) -> dict[str, Any]:
    """Settings of a preset that differ from the defaults, nested as in a config file."""
    if name not in PRESETS:
        raise UserError(f"preset '{name}': no such preset; take one of {', '.join(PRESETS)}.")
    return PRESETS[name]().model_dump(mode="json", exclude_defaults=True)


def _published_causal() -> CausalConfig:
    return CausalConfig(n_factors=105, hidden=128, shift="assigned", sign_prior="none", scales=False)


def _published_loss(alpha: float, beta: float, temperature: float, sigma: float) -> LossConfig:
    return LossConfig(
        alpha=Schedule(high=alpha, start=5, end=EPOCHS // 2 - 1),
        beta=Schedule(high=beta, start=10, end=EPOCHS - 1),
        temperature=Schedule(low=1.0, high=temperature, start=5, end=EPOCHS - 1),
        sparsity=1e-3,
        mean_match=0.0,
        mmd="biased",
        sigma=sigma,
    )


def _published_stream() -> StreamConfig:
    return StreamConfig(bags_per_batch=1, cells_per_bag=CELLS, control_bags=False)


def _published_training(epochs: int = EPOCHS) -> TrainConfig:
    return TrainConfig(epochs=epochs, learning_rate=1e-3, weight_average=None, clip_norm=None)
