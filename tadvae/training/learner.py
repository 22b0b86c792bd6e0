"""One step of learning: weights, optimizer and moving average."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from tadvae.data.vocabulary import Vocabulary
from tadvae.model.device import device_of
from tadvae.nn.adam import Adam
from tadvae.nn.network import TADVAEModule
from tadvae.nn.packed import ModelBatch
from tadvae.settings.experiment import ExperimentConfig
from tadvae.training.averaging import MovingAverage
from tadvae.training.compiling import compile_parts, or_eager
from tadvae.training.former_weights import FormerWeights


class Learner:
    """Weights, optimizer and moving average; one call per step.

    Attributes
    ----------
    module
        The network itself.
    model
        What is called for the loss: the module, or DDP around it.

    Parameters
    ----------
    vocabulary
        Of a fine-tuned model, to know its former weights, which the module has now.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        module: TADVAEModule,
        model: nn.Module | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.config = config
        self.module = module
        self.model = module if model is None else model
        if config.train.compile:
            compile_parts(module)
        # one pass over the weights instead of about ten; not every device has it
        fused = self.device.type in ("cpu", "cuda") or None
        self.optimizer = Adam(module.parameters(), lr=config.train.learning_rate, fused=fused)
        self._former: FormerWeights | None = None
        if vocabulary is not None and vocabulary.origin is not None and config.train.former != "free":
            self._former = FormerWeights(module, vocabulary, config)
        decay = config.train.weight_average
        self.average = None if decay is None else MovingAverage(module, decay)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return device_of(self.module)

    @property
    def final(self) -> TADVAEModule:
        """The network that a run would end with now."""
        return self.module if self.average is None else self.average.module

    def step(self, batch: ModelBatch, epoch: float, *, rank: int, number: int) -> dict[str, Tensor]:
        """Learn from one batch; returns the terms of its loss.

        The noise is drawn from a generator of the step's own, seeded by ``(seed, rank, number)``: that is
        all there is to know of it when training resumes.
        """
        seed = [self.config.seed, rank, number]

        def forward() -> tuple[Tensor, dict[str, Tensor]]:
            noise = noise_of(seed, batch.dataset.device)
            with torch.autocast(batch.dataset.device.type, torch.bfloat16, enabled=self.config.train.bf16):
                result: tuple[Tensor, dict[str, Tensor]] = self.model(batch, epoch, noise)
                return result

        loss, terms = or_eager(self.module, forward) if self.config.train.compile else forward()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self._former is not None:
            self._former.hold(self.module)
        if self.config.train.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.config.train.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.module)
        return {name: value.detach() for name, value in terms.items()}


def noise_of(seed: Sequence[int], device: torch.device) -> torch.Generator:
    """A generator on a device; GPUs draw other numbers than CPUs."""
    state = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


def build_module(
    config: ExperimentConfig, vocabulary: Vocabulary, start: Mapping[str, Tensor] | None = None
) -> TADVAEModule:
    """The network with the weights that the seed gives it, or with those that fine-tuning starts with."""
    torch.manual_seed(config.seed)
    module = TADVAEModule(config.model, config.loss, vocabulary, files=start is None)
    if start is not None:
        module.load_state_dict(start)
    return module
