"""Training without Ray: what to learn from, one step of learning, and the plain loop.

``pipelines/train_worker.py`` runs the same three parts on many workers.
"""

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from tadvae.assemble import BatchAssembler
from tadvae.batch import Batch, Cells
from tadvae.effects.model import EffectModel
from tadvae.effects.observe import fit_effects
from tadvae.errors import UserError
from tadvae.evaluation.splits import split_groups
from tadvae.evaluation.validation import Patience, Validator
from tadvae.experiment import ExperimentConfig
from tadvae.model import TADVAE
from tadvae.module import ModelBatch, TADVAEModule, pack
from tadvae.nn.averaging import averaged
from tadvae.nn.compiling import compile_parts, or_eager
from tadvae.pathways.default import default_pathways
from tadvae.pathways.gmt import read_pathways
from tadvae.pathways.membership import hidden_units, membership
from tadvae.prepare import (
    CellReader,
    Mapper,
    build_vocabulary,
    context_rows,
    interventions,
    load_controls,
    loop,
    make_views,
    resolver,
    training_bags,
    views_of,
)
from tadvae.store.plan import Window, bags_left, epoch_windows, steps_per_epoch
from tadvae.store.reader import Store
from tadvae.vocabulary import Vocabulary

Earlier = tuple[tuple[int, int], ...]
"""See :class:`tadvae.checkpoint.Position`."""


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
    """

    groups: pd.DataFrame
    vocabulary: Vocabulary
    controls: dict[int, Cells]
    effects: EffectModel | None


def prepare_training(store: Store, config: ExperimentConfig, mapper: Mapper = loop) -> Preparation:
    """Split the store, choose genes, match pathways, average the controls.

    Raises
    ------
    UserError
        For whatever in the config does not fit the store; nothing has been written then.
    """
    sets = read_pathways(Path(config.pathways.file)) if config.pathways.file is not None else None
    _require_counts(store, config)
    groups = split_groups(store, config.split, config.validation)
    bags = training_bags(store, groups, config.split)
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
    vocabulary = build_vocabulary(store, groups, views, controls, mask, least)
    TADVAEModule(config.model, config.loss, vocabulary)  # a config that cannot be built fails here
    by_row = dict(enumerate(controls.values()))
    effects = None
    if config.effects.weight:
        reader = CellReader(store, views, config.split)
        effects = fit_effects(reader, bags, vocabulary, by_row, config.effects, mapper)
    return Preparation(groups, vocabulary, by_row, effects)


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


class TrainingSet:
    """The training side of a store: its bags in the order of a plan, as batches of the model.

    Attributes
    ----------
    bags
        Rows of ``store.bags``.
    reader
        Reads their cells.
    """

    def __init__(
        self, store: Store, groups: pd.DataFrame, vocabulary: Vocabulary, config: ExperimentConfig
    ) -> None:
        self.config, self.vocabulary = config, vocabulary
        self.bags = training_bags(store, groups, config.split, config.stream.control_bags)
        self.reader = CellReader(store, views_of(store, vocabulary), config.split)
        every = training_bags(store, groups, config.split)
        controls = load_controls(self.reader, every, config.stream.max_controls)
        self._assembler = BatchAssembler(
            store.bags, controls, store.control, config.stream.bags_per_batch, config.seed
        )
        self._contexts = context_rows(store, vocabulary)
        self._interventions = interventions(store, vocabulary)

    @property
    def skipped(self) -> int:
        """Bags that the batches left out so far, since all of their cells are held out."""
        return self._assembler.skipped

    def left(self, epoch: int, earlier: Earlier = ()) -> pd.DataFrame:
        """The bags that are left of an epoch; see :func:`tadvae.store.plan.bags_left`."""
        return bags_left(self.bags, self.config.stream, seed=self.config.seed, epoch=epoch, earlier=earlier)

    def n_steps(self, world_size: int = 1, epoch: int = 0, earlier: Earlier = ()) -> int:
        """Steps of every rank in one epoch, or in what is left of it."""
        return steps_per_epoch(len(self.left(epoch, earlier)), self.config.stream, world_size)

    def windows(
        self, epoch: int, rank: int = 0, world_size: int = 1, steps_done: int = 0, earlier: Earlier = ()
    ) -> list[Window]:
        """What a rank reads in an epoch, without its first ``steps_done`` steps."""
        return epoch_windows(
            self.left(epoch, earlier),
            self.config.stream,
            seed=self.config.seed,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
            skip=steps_done * self.config.stream.bags_per_batch,
        )

    def batches(
        self,
        windows: Iterable[Window],
        reads: Iterator[tuple[np.ndarray, Cells]],
        epoch: int,
        device: torch.device | str = "cpu",
    ) -> Iterator[tuple[ModelBatch, Batch]]:
        """Batches of an epoch, from what was read of its windows."""
        for batch in self._assembler.batches(windows, reads, epoch):
            yield pack(batch, self.vocabulary, self._contexts, self._interventions, device), batch


class Learner:
    """Weights, optimizer and moving average; one call a step.

    Attributes
    ----------
    module
        The network itself.
    model
        What is called for the loss: the module, or DDP around it.
    """

    def __init__(
        self, config: ExperimentConfig, module: TADVAEModule, model: nn.Module | None = None
    ) -> None:
        self.config = config
        self.module = module
        self.model = module if model is None else model
        if config.train.compile:
            compile_parts(module)
        self.optimizer = torch.optim.Adam(module.parameters(), lr=config.train.learning_rate)
        decay = config.train.weight_average
        self.average = None if decay is None else averaged(module, decay)

    @property
    def final(self) -> TADVAEModule:
        """The network that a run would end with now."""
        if self.average is None:
            return self.module
        averaged = self.average.module
        assert isinstance(averaged, TADVAEModule)
        return averaged

    def step(self, batch: ModelBatch, epoch: float, *, rank: int, number: int) -> dict[str, Tensor]:
        """Learn from one batch; returns the terms of its loss.

        The noise is drawn from a generator of the step's own, seeded by ``(seed, rank, number)``: that is
        all there is to know of it when training resumes.
        """
        seed = np.random.SeedSequence([self.config.seed, rank, number]).generate_state(1, np.uint64)[0]

        def forward() -> tuple[Tensor, dict[str, Tensor]]:
            noise = torch.Generator().manual_seed(int(seed >> np.uint64(1)))
            with torch.autocast(batch.dataset.device.type, torch.bfloat16, enabled=self.config.train.bf16):
                result: tuple[Tensor, dict[str, Tensor]] = self.model(batch, epoch, noise)
                return result

        loss, terms = or_eager(self.module, forward) if self.config.train.compile else forward()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.train.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.config.train.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.module)
        return {name: value.detach() for name, value in terms.items()}


def build_module(config: ExperimentConfig, vocabulary: Vocabulary) -> TADVAEModule:
    """The network with the weights that the seed gives it."""
    torch.manual_seed(config.seed)
    return TADVAEModule(config.model, config.loss, vocabulary)


def fit(store: Store, config: ExperimentConfig) -> tuple[TADVAE, pd.DataFrame]:
    """Train in this process, without Ray and without a run's folder: for small stores, tests and studies.

    Returns
    -------
    The model, with control cells to predict from, and its split.
    """
    prepared = prepare_training(store, config)
    data = TrainingSet(store, prepared.groups, prepared.vocabulary, config)
    learner = Learner(config, build_module(config, prepared.vocabulary))
    kept: dict[tuple[int, int, bytes], tuple[np.ndarray, Cells]] = {}

    def read(shard: int, row_group: int, bag_ids: np.ndarray) -> tuple[np.ndarray, Cells]:
        key = (shard, row_group, bag_ids.tobytes())
        if key not in kept:
            kept[key] = data.reader.read(shard, row_group, bag_ids)
        return kept[key]

    patience, validator, best = Patience(config.validation), None, None
    if config.validation.patience is not None:
        validator = Validator(store, prepared.groups, prepared.vocabulary, config, prepared.effects)
    number, n_steps = 0, data.n_steps()
    for epoch in range(config.train.epochs):
        windows = data.windows(epoch)
        reads = (read(*each) for window in windows for each in window.reads)
        for step, (batch, _) in enumerate(data.batches(windows, reads, epoch)):
            learner.step(batch, epoch + step / n_steps, rank=0, number=number)
            number += 1
        if validator is not None and validator.due(epoch):
            patience.add(validator.score(learner.final))
            if patience.best_is_last:
                best = deepcopy(learner.final.state_dict())
            if patience.over:
                break
    learner.module.load_state_dict(learner.final.state_dict() if best is None else best)
    return TADVAE(
        learner.module, prepared.vocabulary, config, prepared.controls, prepared.effects
    ), prepared.groups
