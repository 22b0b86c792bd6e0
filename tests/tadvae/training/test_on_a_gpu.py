"""What a step would do on a GPU: operations, waits and copies, counted on a device that is not there."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_device import DEVICE, Elsewhere, FakeDevice

import tadvae.nn.cell_attention as cell_attention
from tadvae.cells.ragged import Cells
from tadvae.data.batches import Bag, Batch
from tadvae.nn.one_copy import to_device
from tadvae.nn.pack import pack
from tadvae.nn.strategies.base import STRATEGIES
from tadvae.settings.experiment import ExperimentConfig
from tadvae.training import learner as learner_module
from tadvae.training.checkpoint import Position
from tadvae.training.epochs import READ_EVERY, Observer, train_epochs
from tadvae.training.learner import Learner, build_module, noise_of
from tadvae.training.validation import Patience

N_BAGS = 8
SMALL = {"d_embed": 8, "n_heads": 2}
OPERATIONS = {
    "hard": 600, "soft": 600, "soft_log": 600, "linear": 510, "agreement": 530, "members": 790, "none": 610,
    "inducing": 850, "full": 790, "all": 640,
}  # fmt: skip
"""Most operations of a step, forward and backward, with eight bags of two datasets."""
STATIC = ["hard", "soft", "soft_log", "linear", "agreement"]
"""What never waits: its shapes are known in host memory."""
WAITS = {"members": 12, "none": 14, "inducing": 22, "full": 17, "all": 16}
"""Most waits of a forward pass of the others, blocking copies included."""


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch):
    """Autocast does not know the device that is not there."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(learner_module, "noise_of", lambda seed, device: noise_of(seed, torch.device("cpu")))


@pytest.fixture(scope="module")
def eight_bags(small_batch) -> Batch:
    """Bags of two datasets that share their controls within a context."""
    first, *_, profile = (bag for bag in small_batch.bags if bag.controls is not None)
    screen = [Bag(i, 0, 0, 1 + i % 3, first.cells, first.controls) for i in range(4)]
    means = [Bag(9 + i, 1, 0, 1 + i % 2, two(profile.cells), two(profile.controls)) for i in range(4)]
    return Batch(screen + means)


def two(cells):
    """A profile and half of it, so that its bag has an MMD."""
    return Cells.concat([cells, replace(cells, values=cells.values / 2)])


def not_empty(cells):
    """The cells that have a token."""
    return cells.take(np.flatnonzero(np.diff(cells.offsets)))


def network(vocabulary, name):
    encoder = name if name in ("inducing", "full") else "none"
    masking = name if name in STRATEGIES else "hard"
    model = {
        "pathway": SMALL | {"masking": masking, "tokens": "all" if name == "all" else "expressed"},
        "encoder": {"kind": encoder},
        "causal": {"n_factors": 3, "hidden": 8},
    }
    train = {"weight_average": 0.9, "clip_norm": 1.0}
    config = ExperimentConfig.parse({"model": model, "train": train}, "test")
    module = build_module(config, vocabulary)
    return config, module


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_step(small_vocabulary, small_interventions, eight_bags, name):
    """No mixing of devices; no more operations, waits and copies than their budgets; the CPU's loss."""
    interventions, rows = small_interventions
    _, module = network(small_vocabulary, name)
    degree = module.pathway.edges.degree()
    expected, _ = module(pack(eight_bags, small_vocabulary, rows, interventions), 1.5, None)
    expected.backward()
    gradients = {key: value.grad.clone() for key, value in module.named_parameters()}
    module.zero_grad()
    with FakeDevice() as device:
        module.to(DEVICE)
        device.forget()
        batch = pack(eight_bags, small_vocabulary, rows, interventions, DEVICE, degree)
        assert device.copied == {False: 1}
        assert device.launched.total() == 1  # the copy
        module(batch, 1.5, None)  # the first time it looks at its edges
        device.forget()
        found, _ = module(batch, 1.5, None)
        waits = device.waits.total()
        found.backward()
        assert device.launched.total() <= OPERATIONS[name]
        if name in STATIC:
            assert (device.waits.total(), device.copied.total()) == (0, 0), (device.waits, device.copied)
        else:
            assert 0 < waits <= WAITS[name], device.waits
        for key, value in module.named_parameters():
            torch.testing.assert_close(value.grad.here, gradients[key], rtol=1e-3, atol=1e-5, msg=key)
    torch.testing.assert_close(found.here, expected.detach(), rtol=1e-5, atol=1e-5)


@torch.library.custom_op("tadvae_tests::attention", mutates_args=())
def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
    starts_q: torch.Tensor, starts_k: torch.Tensor, longest_q: int, longest_k: int,
) -> torch.Tensor:  # fmt: skip
    """Stands for PyTorch's kernel for variable lengths: one operation."""
    lengths = (cell_attention.Lengths.of(starts) for starts in (starts_q, starts_k))
    return cell_attention.by_slices(q, k, v, *lengths)


@torch.library.custom_op("tadvae_tests::attention_backward", mutates_args=())
def attention_backward(
    gradient: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
    starts_q: torch.Tensor, starts_k: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Its gradient: one operation."""
    by_cell = [part.split(torch.diff(starts_q).tolist()) for part in (gradient, q)]
    by_cell += [part.split(torch.diff(starts_k).tolist()) for part in (k, v)]
    parts = []
    for rows in zip(*by_cell, strict=True):
        gradient, q, k, v = (part.transpose(0, 1) for part in rows)  # (h, n, w)
        scale = q.shape[-1] ** -0.5
        weight = torch.softmax(scale * q @ k.mT, -1)
        d_weight = gradient @ v.mT
        d_logit = scale * weight * (d_weight - (weight * d_weight).sum(-1, keepdim=True))
        found = d_logit @ k, d_logit.mT @ q, weight.mT @ gradient
        parts.append([part.transpose(0, 1) for part in found])
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


attention.register_autograd(
    lambda ctx, gradient: (*attention_backward(gradient, *ctx.saved_tensors), None, None, None, None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs[:5]),
)


@pytest.mark.parametrize(("name", "operations", "most_waits"), [("none", 500, 1), ("inducing", 700, 4)])
def test_a_step_in_half_precision(
    monkeypatch, small_vocabulary, small_interventions, eight_bags, name, operations, most_waits
):
    """Attention within cells that are not empty is one call there, and the loss is the same."""
    bags = [
        replace(bag, cells=not_empty(bag.cells), controls=not_empty(bag.controls)) for bag in eight_bags.bags
    ]
    eight_bags = Batch(bags)
    monkeypatch.setattr(cell_attention, "by_buckets", cell_attention.by_lengths)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", attention)
    interventions, rows = small_interventions
    _, module = network(small_vocabulary, name)
    degree = module.pathway.edges.degree()
    expected, _ = module(pack(eight_bags, small_vocabulary, rows, interventions), 1.5, None)
    with FakeDevice() as device:
        module.to(DEVICE)
        batch = pack(eight_bags, small_vocabulary, rows, interventions, DEVICE, degree)
        module(batch, 1.5, None)
        device.forget()
        found, _ = module(batch, 1.5, None)
        assert device.waits.total() <= most_waits, device.waits
        found.backward()
        assert device.launched.total() <= operations
    torch.testing.assert_close(found.here, expected.detach(), rtol=1e-5, atol=1e-5)


def test_a_step_of_learning_never_waits(small_vocabulary, small_interventions, eight_bags):
    """Clipping, the optimizer and the moving average ask the device for nothing, whichever way it goes."""
    interventions, rows = small_interventions
    config, module = network(small_vocabulary, "hard")
    with FakeDevice() as device:
        learning = Learner(config, module.to(DEVICE))
        degree = module.pathway.edges.degree()
        batch = pack(eight_bags, small_vocabulary, rows, interventions, DEVICE, degree)
        for number in range(2):
            device.forget()
            learning.step(batch, 0.5, rank=0, number=number)
        assert device.waits.total() == 0, device.waits
        assert device.copied.total() == 0


def test_losses_are_read_after_some_steps(small_vocabulary, small_interventions, eight_bags):
    """Ten steps wait for the device once, and every step is told of with its own numbers."""
    interventions, rows = small_interventions
    config, module = network(small_vocabulary, "linear")
    n_steps = READ_EVERY + 1
    data = SimpleNamespace(n_steps=lambda *_: n_steps, left=lambda *_: range(4), bags=range(4), skipped=0)

    class Kept(Observer):
        def __init__(self):
            self.steps = []

        def step_done(self, done):
            self.steps.append(done)

    kept = Kept()
    with FakeDevice() as device:
        learning = Learner(config, module.to(DEVICE))
        batch = pack(eight_bags, small_vocabulary, rows, interventions, DEVICE, module.pathway.edges.degree())
        batches = iter([(batch, eight_bags)] * n_steps)
        device.forget()
        start = Position(cells_seen=5)
        train_epochs(
            learning, data, batches, start, range(1), patience=Patience(config.validation), observer=kept
        )
        assert device.waits["copy to the host"] == 2
        # of the sizes, and once of the edges
        assert device.waits.total() <= 2 + 2 + 4, device.waits
    assert [done.position.step for done in kept.steps] == list(range(1, n_steps + 1))
    cells = eight_bags.n_cells
    assert [done.position.cells_seen for done in kept.steps] == [5 + cells * (i + 1) for i in range(n_steps)]
    assert all(done.sizes == [cells, eight_bags.n_tokens, N_BAGS] for done in kept.steps)
    assert kept.steps[0].terms["loss"] > kept.steps[-1].terms["loss"]


def test_mixing_devices_is_an_error():
    with FakeDevice():
        there = torch.ones(2, device=DEVICE)
        assert isinstance(there, Elsewhere)
        with pytest.raises(RuntimeError, match="in host memory"):
            there + torch.ones(2)
        assert (there * 2).tolist() == [2, 2]


def test_what_waits_is_counted():
    """A number that is read, a mask as an index, a shape that depends on values, a copy that blocks."""
    with FakeDevice() as device:
        there = torch.arange(3.0).to(DEVICE)
        assert device.waits.pop("copy to the device") == 1
        there.sum().item()
        assert bool((there > 1).any())
        assert device.waits.pop("_local_scalar_dense") == 2
        there[there > 1] = 0.0
        there[there > 1]
        torch.nonzero(there)
        n = torch.ones(3, dtype=torch.int64, device=DEVICE)
        n.repeat_interleave(n, output_size=3)
        assert set(device.waits) == {"index_put_", "index", "nonzero"}
        n.repeat_interleave(n)
        there.cpu()
        torch.ones(2).to(DEVICE, non_blocking=True)
        assert device.waits.total() == 5
        assert device.copied == {True: 1, False: 1}


def test_one_copy_of_tensors_of_all_kinds(small_vocabulary, small_interventions, small_batch):
    interventions, rows = small_interventions
    batch = pack(small_batch, small_vocabulary, rows, interventions)
    assert to_device(batch, torch.device("cpu")) is batch
    with FakeDevice():
        there = to_device(batch, DEVICE)

    def compare(found, expected):
        if isinstance(expected, torch.Tensor):
            torch.testing.assert_close(found.here, expected, rtol=0, atol=0, equal_nan=True)
        elif hasattr(expected, "__dataclass_fields__"):
            for name in expected.__dataclass_fields__:
                compare(getattr(found, name), getattr(expected, name))
        elif isinstance(expected, list | tuple):
            for pair in zip(found, expected, strict=True):
                compare(*pair)
        else:
            assert found is expected

    compare(there, batch)
