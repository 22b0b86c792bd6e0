"""Training without Ray: what to learn from, one step of learning, and the plain loop.

``pipelines/train/worker.py`` runs the same three parts on many workers.
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch import Tensor

from tadvae.base.errors import UserError
from tadvae.cells.ragged import Cells
from tadvae.data.build_vocabulary import build_vocabulary, resolver
from tadvae.data.reader import CellReader, Mapper, load_controls, loop, training_bags
from tadvae.data.splits import split_groups
from tadvae.data.views import make_views
from tadvae.data.vocabulary import Vocabulary
from tadvae.effects.model import EffectModel
from tadvae.effects.observe import fit_effects
from tadvae.nn.network import TADVAEModule
from tadvae.nn.strategies.base import STRATEGIES
from tadvae.pathways.default import default_pathways
from tadvae.pathways.membership import hidden_units, membership
from tadvae.pathways.permuted import permuted_genes
from tadvae.pathways.read import read_pathways
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.agreement import control_samples, learn_agreement
from tadvae.training.pretrained import Pretrained, grown_membership, in_terms_of


@dataclass(frozen=True)
class Preparation:
    """What is decided once, before training.

    Attributes
    ----------
    groups
        The split.
    vocabulary
    controls
        Control cells by row of ``vocabulary.contexts``.
    effects
        Mean effects; None where they have no weight.
    store
        The store, in the terms of the model that is fine-tuned.
    start
        Weights that fine-tuning starts with; None: those that the seed gives.
    """

    groups: pd.DataFrame
    vocabulary: Vocabulary
    controls: dict[int, Cells]
    effects: EffectModel | None
    store: Store
    start: dict[str, Tensor] | None = None


def prepare_training(store: Store, config: ExperimentConfig, mapper: Mapper = loop) -> Preparation:
    """Split the store, choose genes, match pathways, average the controls.

    Where the config names the model to fine-tune, all of this is added to what that model knows.

    Raises
    ------
    UserError
        For whatever in the config does not fit the store; nothing has been written then.
    """
    if config.origin is not None:
        return _prepare_fine_tuning(store, config, mapper)
    sets = read_pathways(Path(config.pathways.file)) if config.pathways.file is not None else None
    _require_counts(store, config)
    groups = split_groups(store, config.split, config.validation)
    bags = training_bags(store, groups, config.split)
    if (reason := shifts_out_of_reach(bags, store.control, config)) is not None:
        raise UserError(reason)
    views = make_views(store, bags, config.split, config.preprocess, mapper)
    controls = load_controls(CellReader(store, views, config.split), bags, config.stream.max_controls, mapper)
    _require_controls(store, bags, set(controls))
    genes, panels = store.genes["gene"].tolist(), [view.genes for view in views]
    least = config.pathways.min_measured
    if config.pathways.units is not None:
        mask = hidden_units(config.pathways.units, len(genes))
    else:
        if sets is None:
            sets = default_pathways(genes, panels, store.gene_reference, least)
        mask = membership(sets, genes, resolver(store), panels, least)
        if config.pathways.permuted is not None:
            mask = permuted_genes(mask, panels, config.pathways.permuted)
    if STRATEGIES[config.model.pathway.masking].learns_agreement:
        mask = learn_agreement(mask, control_samples(mask, panels, controls, config.seed), config.seed)
    vocabulary = build_vocabulary(store, groups, views, controls, mask, least)
    TADVAEModule(config.model, config.loss, vocabulary)  # a config that cannot be built fails here
    by_row = dict(enumerate(controls.values()))
    effects = None
    if config.effects.weight:
        reader = CellReader(store, views, config.split)
        effects = fit_effects(reader, bags, vocabulary, by_row, config.effects, mapper)
    return Preparation(groups, vocabulary, by_row, effects, store)


def _prepare_fine_tuning(store: Store, config: ExperimentConfig, mapper: Mapper) -> Preparation:
    """The same for a store that is added to what a trained model knows."""
    assert config.origin is not None
    pretrained = Pretrained.load(config.origin)
    pretrained.require_same_network(config)
    store, origin = in_terms_of(store, pretrained), pretrained.origin
    known = pretrained.known(store)
    _require_counts(store, config)
    groups = split_groups(store, config.split, config.validation)
    bags = training_bags(store, groups, config.split)
    if (reason := shifts_out_of_reach(bags, store.control, config)) is not None:
        raise UserError(reason)
    former = pretrained.views(known)
    views = make_views(store, bags, config.split, config.preprocess, mapper, former)
    controls = load_controls(CellReader(store, views, config.split), bags, config.stream.max_controls, mapper)
    _require_controls(store, bags, set(controls))
    panels = [view.genes for view in views[len(former) :]]
    mask = grown_membership(known, store, panels, config, origin)
    least = config.pathways.min_measured
    vocabulary = build_vocabulary(store, groups, views, controls, mask, least, known, origin)
    start = pretrained.start(config, known, vocabulary)
    rows = dict(enumerate(controls.values(), start=len(known.contexts)))
    effects = None
    if config.effects.weight:
        reader = CellReader(store, views, config.split)
        observed = pretrained.observed(known)
        effects = fit_effects(reader, bags, vocabulary, rows, config.effects, mapper, observed)
    by_row = {**pretrained.controls(store), **rows}
    return Preparation(groups, vocabulary, by_row, effects, store, start)


def shifts_out_of_reach(bags: pd.DataFrame, control: int, config: ExperimentConfig) -> str | None:
    """Why no term of the loss depends on the shifts of targets, as one sentence; None if one does.

    Shifts are learned from the MMD, which compares sets of two or more cells, and from mean matching. Without
    either they would stay as the seed drew them, and predictions would be noise.

    Parameters
    ----------
    bags
        The training bags.
    control
        Store index of the control.
    """
    perturbed = bags[bags["perturbation"] != control]
    if perturbed.empty or config.loss.mean_match > 0 or config.effects.weight == 1:
        return None
    alpha = config.loss.alpha
    if max(alpha.low, alpha.high) <= 0:
        why = "loss.alpha and loss.mean_match are 0"
    elif perturbed["n_cells"].max() < 2:
        why = (
            "loss.mean_match is 0, and the MMD needs two or more cells of a perturbation, but every training "
            "bag is a single profile"
        )
    else:
        return None
    return (
        f"nothing in the data can teach this model what perturbations do: {why}; set loss.mean_match above "
        "0, or take another preset (dvae, sena and tadvae-paper need single cells)."
    )


def _require_counts(store: Store, config: ExperimentConfig) -> None:
    if config.loss.likelihood != "negative_binomial":
        return
    if config.preprocess.normalize == "tpm":
        raise UserError("loss.likelihood: negative_binomial needs counts a library size, not TPM; use cp10k.")
    for entry in store.manifest.datasets:
        if entry.values != "counts":
            raise UserError(
                f"loss.likelihood: negative_binomial needs counts, but dataset '{entry.name}' holds "
                f"{entry.values} values; use gaussian, or leave the dataset out."
            )


def _require_controls(store: Store, bags: pd.DataFrame, found: set[tuple[int, int]]) -> None:
    perturbed = bags[bags["perturbation"] != store.control]
    for dataset, context in sorted(set(zip(perturbed["dataset"], perturbed["context"], strict=True)) - found):
        name, where = store.manifest.datasets[dataset].name, store.manifest.contexts[context]
        raise UserError(
            f"dataset '{name}', context '{where}': perturbed cells but no control cells to compare with; "
            "convert with a coarser context, or without these cells."
        )
