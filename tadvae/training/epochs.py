"""The one loop over epochs and steps, for a single process and for every worker of a Ray run."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tadvae.base.allocator import keep_freed_memory
from tadvae.data.batches import Batch
from tadvae.nn.packed import ModelBatch
from tadvae.training.checkpoint import Position
from tadvae.training.learner import Learner
from tadvae.training.ranks import all_agree, any_rank, mean_over_ranks
from tadvae.training.training_set import TrainingSet
from tadvae.training.validation import Patience, Validator

READ_EVERY = 10
"""Steps after which a GPU is asked for the losses: every time it has to finish what it was given."""


@dataclass(frozen=True)
class StepDone:
    """What one step did.

    Attributes
    ----------
    position
        Where the run stands after it.
    epochs_done
        Epochs done by then, with the fraction of the current one.
    sizes
        Cells, tokens and bags of all ranks.
    terms
        The loss and its terms, means over ranks.
    wait, seconds
        This rank's seconds of waiting for data, and of the whole step.
    bags
        Ids of this rank's bags.
    skipped
        Bags that this rank left out so far, since all of their cells are held out.
    """

    position: Position
    epochs_done: float
    sizes: list[int]
    terms: dict[str, float]
    wait: float
    seconds: float
    bags: list[int]
    skipped: int


@dataclass(frozen=True)
class _Made:
    """A step whose numbers were not read yet.

    Attributes
    ----------
    position, epochs_done, wait, bags
        As in :class:`StepDone`; the position does not know of the step's cells.
    begun
        When it began.
    terms
        The loss and its terms, of this rank.
    sizes
        Cells, tokens and bags of this rank.
    """

    position: Position
    epochs_done: float
    wait: float
    begun: float
    terms: dict[str, Tensor]
    sizes: list[int]
    bags: list[int]


class Observer:
    """What follows a training; by default it does nothing."""

    def step_done(self, done: StepDone) -> None:
        """Called after every step."""

    def checkpoint_due(self, position: Position) -> None:
        """Called within an epoch, every ``train.checkpoint_every`` steps, on all ranks."""

    def epoch_done(self, position: Position, scores: dict[str, float] | None) -> None:
        """Called after every epoch on all ranks, with the scores of a validation where there was one."""


def train_epochs(
    learner: Learner,
    data: TrainingSet,
    batches: Iterator[tuple[ModelBatch, Batch]],
    start: Position,
    epochs: range,
    *,
    rank: int = 0,
    world_size: int = 1,
    patience: Patience,
    validator: Validator | None = None,
    observer: Observer,
) -> None:
    """Train from a position to the end of some epochs, or until validation gets no better.

    Parameters
    ----------
    batches
        This rank's batches from that position on, as :meth:`TrainingSet.stream` makes them.
    start
        Position of the first step.
    epochs
        From that of the position on.
    patience
        Takes in the scores; where ``validation.patience`` is set and it is over on any rank, training ends.
    validator
        Scores the network, on the one rank that has it.
    observer
        Is told of every step, checkpoint and epoch.
    """
    config, position, device = learner.config, start, learner.device
    if device.type == "cpu":
        keep_freed_memory()
    read_every = 1 if device.type == "cpu" else READ_EVERY
    for epoch in epochs:
        earlier = start.earlier if epoch == start.epoch else ()
        n_steps = all_agree(data.n_steps(world_size, epoch, earlier), "steps of an epoch", device)
        shown = 1 - len(data.left(epoch, earlier)) / len(data.bags)  # by the stretches before a resize
        every = config.train.checkpoint_every or n_steps
        made: list[_Made] = []
        while position.step < n_steps:
            clock = time.perf_counter()
            packed, batch = next(batches)
            waited = time.perf_counter() - clock
            now = epoch + shown + (1 - shown) * position.step / n_steps
            terms = learner.step(packed, now, rank=rank, number=position.global_step)
            position = replace(position, step=position.step + 1, global_step=position.global_step + 1)
            made.append(
                _Made(
                    position,
                    epochs_done=epoch + shown + (1 - shown) * position.step / n_steps,
                    wait=waited,
                    begun=clock,
                    terms=terms,
                    sizes=[batch.n_cells, batch.n_tokens, len(batch.bags)],
                    bags=[bag.bag for bag in batch.bags],
                )
            )
            checkpoint = position.step % every == 0
            if len(made) < read_every and not checkpoint and position.step < n_steps:
                continue
            for done in _read(made, position.cells_seen, world_size, data.skipped):
                position = done.position
                observer.step_done(done)
            made = []
            if checkpoint and position.step < n_steps:
                observer.checkpoint_due(position)
        position = replace(position, epoch=epoch + 1, step=0, earlier=())
        scores = None
        if validator is not None and validator.due(epoch):
            scores = validator.score(learner.final)
            patience.add(scores)
        observer.epoch_done(position, scores)
        if config.validation.patience is not None and any_rank(patience.over, device):
            break


def _read(made: list[_Made], cells_seen: int, world_size: int, skipped: int) -> Iterator[StepDone]:
    """Read the numbers of steps from the device, and from all ranks, at once."""
    device = next(iter(made[0].terms.values())).device
    terms = torch.stack([value for step in made for value in step.terms.values()]).view(len(made), -1)
    sizes = torch.tensor([step.sizes for step in made], dtype=terms.dtype).to(device)
    means = mean_over_ranks(torch.cat([terms, sizes], dim=1), world_size).tolist()
    ends = [*(step.begun for step in made[1:]), time.perf_counter()]
    for step, values, end in zip(made, means, ends, strict=True):
        totals = [round(size * world_size) for size in values[len(step.terms) :]]
        cells_seen += totals[0]
        yield StepDone(
            replace(step.position, cells_seen=cells_seen),
            epochs_done=step.epochs_done,
            sizes=totals,
            terms=dict(zip(step.terms, values, strict=False)),
            wait=step.wait,
            seconds=end - step.begun,
            bags=step.bags,
            skipped=skipped,
        )
