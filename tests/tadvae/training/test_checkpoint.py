"""Checkpoints: training goes on to the bit; what is not a checkpoint is refused; nothing is pickled."""

import json
import pickle
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tadvae.base.checksums import SUMS
from tadvae.model.weights import WEIGHTS, load_weights, state_tensors
from tadvae.nn.causal import CausalConfig
from tadvae.nn.decoder import DecoderConfig
from tadvae.nn.losses import LossConfig
from tadvae.nn.network import ModelConfig, TADVAEModule
from tadvae.nn.strategies.base import PathwayConfig
from tadvae.training.averaging import MovingAverage
from tadvae.training.checkpoint import OPTIMIZER, POSITION, Position, load_checkpoint, save_checkpoint

CONFIGS = {
    "identity": ModelConfig(
        pathway=PathwayConfig(d_embed=8, n_heads=2),
        causal=CausalConfig(n_factors=4, hidden=6),
        decoder=DecoderConfig(d_gene=5, hidden=6),
    ),
    "gene": ModelConfig(
        pathway=PathwayConfig(masking="linear", leak=0.1),
        causal=CausalConfig(n_factors=4, hidden=6, targets="gene"),
        decoder=DecoderConfig(d_gene=5, hidden=6),
    ),
}
FILES = [WEIGHTS, OPTIMIZER, POSITION]


def build(vocabulary, config="identity", seed=0):
    torch.manual_seed(seed)
    module = TADVAEModule(CONFIGS[config], LossConfig(), vocabulary)
    return module, torch.optim.Adam(module.parameters(), lr=1e-2)


def train(module, optimizer, batch, steps):
    losses = []
    for step in steps:
        loss, _ = module(batch, 0.1 * step, torch.Generator().manual_seed(step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def saved(small_vocabulary, small_batch, pack_small, tmp_path):
    """A checkpoint after three steps, in its folder, and its vocabulary."""
    module, optimizer = build(small_vocabulary)
    train(module, optimizer, pack_small(small_batch, torch.float32), range(3))
    position = Position(1, 2, 7, world_size=2, bags_per_batch=8, vocabulary="abc", earlier=((3, 16), (1, 8)))
    save_checkpoint(tmp_path, module, optimizer, position)
    return tmp_path


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("before", [0, 3])
def test_training_goes_on_to_the_bit(small_vocabulary, small_batch, pack_small, tmp_path, config, before):
    batch = pack_small(small_batch, torch.float32)
    module, optimizer = build(small_vocabulary, config)
    train(module, optimizer, batch, range(before))
    position = Position(epoch=1, step=before, global_step=before, vocabulary=small_vocabulary.hash)
    save_checkpoint(tmp_path, module, optimizer, position)
    expected = train(module, optimizer, batch, range(before, before + 3))

    other, its_optimizer = build(small_vocabulary, config, seed=1)
    assert load_checkpoint(tmp_path, other, its_optimizer, small_vocabulary.hash) == position
    assert train(other, its_optimizer, batch, range(before, before + 3)) == expected
    for (name, found), value in zip(other.named_parameters(), module.parameters(), strict=True):
        assert torch.equal(found, value), name
    for value, copy in zip(module.parameters(), other.parameters(), strict=True):
        state, found = optimizer.state[value], its_optimizer.state[copy]
        assert state.keys() == found.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(state[key], found[key]) for key in state)


def test_the_average_goes_on_to_the_bit_and_follows_its_definition(
    small_vocabulary, small_batch, pack_small, tmp_path
):
    batch = pack_small(small_batch, torch.float32)
    module, optimizer = build(small_vocabulary)
    average, expected = MovingAverage(module, 0.8), None
    for step in range(6):
        if step == 4:
            position = Position(global_step=step, vocabulary=small_vocabulary.hash)
            save_checkpoint(tmp_path, module, optimizer, position, average)
        train(module, optimizer, batch, range(step, step + 1))
        average.update(module)
        now = [value.detach().double() for value in module.parameters()]
        decay = min(0.8, (1 + step) / (10 + step))
        expected = (
            now if step == 0 else [decay * e + (1 - decay) * n for e, n in zip(expected, now, strict=True)]
        )
    for found, value in zip(average.module.parameters(), expected, strict=True):
        torch.testing.assert_close(found.double(), value, rtol=1e-5, atol=1e-7)

    other, its_optimizer = build(small_vocabulary, seed=1)
    its_average = MovingAverage(other, 0.8)
    load_checkpoint(tmp_path, other, its_optimizer, small_vocabulary.hash, its_average)
    for step in (4, 5):
        train(other, its_optimizer, batch, range(step, step + 1))
        its_average.update(other)
    for found, value in zip(its_average.module.parameters(), average.module.parameters(), strict=True):
        assert torch.equal(found, value)


def test_the_optimizer_matters(small_vocabulary, small_batch, pack_small, saved):
    """The comparison above can fail: weights alone do not go on alike."""
    batch = pack_small(small_batch, torch.float32)
    with_state, optimizer = build(small_vocabulary)
    load_checkpoint(saved, with_state, optimizer, "abc")
    without, fresh = build(small_vocabulary)
    load_weights(saved / WEIGHTS, without)
    assert train(with_state, optimizer, batch, range(3, 6)) != train(without, fresh, batch, range(3, 6))


def test_settings_of_the_optimizer_are_the_run_s(small_vocabulary, saved):
    module, _ = build(small_vocabulary)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.5)
    load_checkpoint(saved, module, optimizer, "abc")
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_a_model_without_targets(small_vocabulary, tmp_path):
    vocabulary = replace(small_vocabulary, targets=[], modalities=[], signs=[])
    module, optimizer = build(vocabulary)
    save_checkpoint(tmp_path, module, optimizer, Position())
    load_checkpoint(tmp_path, *build(vocabulary, seed=1), "")


def test_position_round_trip(small_vocabulary, saved):
    position = load_checkpoint(saved, *build(small_vocabulary), "abc")
    assert position == Position(
        1, 2, 7, world_size=2, bags_per_batch=8, vocabulary="abc", earlier=((3, 16), (1, 8))
    )


def test_another_vocabulary(small_vocabulary, saved, refused):
    module, optimizer = build(small_vocabulary, seed=1)
    before = state_tensors(module)
    before = {name: value.clone() for name, value in before.items()}
    sentence = refused(load_checkpoint, saved, module, optimizer, "xyz")
    assert "abc" in sentence
    assert "xyz" in sentence
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "garbage"])
def test_damaged_files(small_vocabulary, saved, refused, name, damage):
    content = (saved / name).read_bytes()
    if damage == "missing":
        (saved / name).unlink()
    else:
        bad = {"empty": b"", "truncated": content[: len(content) // 2], "garbage": b"\xff\x00?" * 40}
        (saved / name).write_bytes(bad[damage])
    sentence = refused(load_checkpoint, saved, *build(small_vocabulary), "abc")
    assert str(saved / name) in sentence


@pytest.mark.parametrize(
    "text", ["[]", "null", "{}", '{"epoch": 1, "unknown": 2}', '{"vocabulary": "abc", "epoch": "one"}']
)
def test_positions_that_are_none(small_vocabulary, saved, refused, text):
    (saved / POSITION).write_text(text)
    sentence = refused(load_checkpoint, saved, *build(small_vocabulary), "abc")
    assert str(saved / POSITION) in sentence


def test_weights_of_another_model(small_vocabulary, saved, refused):
    sentence = refused(load_checkpoint, saved, *build(small_vocabulary, "gene"), "abc")
    assert "another model" in sentence
    weights = load_file(saved / WEIGHTS)
    weights["decoder.bias"] = weights["decoder.bias"][:-1].contiguous()
    save_file(weights, saved / WEIGHTS)
    assert "decoder.bias" in refused(load_weights, saved / WEIGHTS, build(small_vocabulary)[0])


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state | {"99.exp_avg": torch.zeros(2)},
        lambda state: state | {"0.exp_avg": torch.zeros(2, 3)},
        lambda state: state | {"exp_avg": torch.zeros(2)},
        lambda state: {key: value for key, value in state.items() if key != "0.exp_avg_sq"},
    ],
    ids=["no such parameter", "another shape", "no number", "half a state"],
)
def test_optimizer_state_of_another_model(small_vocabulary, saved, refused, change):
    save_file(change(load_file(saved / OPTIMIZER)), saved / OPTIMIZER)
    sentence = refused(load_checkpoint, saved, *build(small_vocabulary), "abc")
    assert str(saved / OPTIMIZER) in sentence


class Evil:
    """What runs code when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize("name", FILES)
def test_pickles_are_refused_unopened(small_vocabulary, saved, refused, name):
    (saved / name).write_bytes(pickle.dumps(Evil()))
    refused(load_checkpoint, saved, *build(small_vocabulary), "abc")
    torch.save({"evil": Evil()}, saved / name)
    refused(load_checkpoint, saved, *build(small_vocabulary), "abc")


def test_nothing_is_pickled(small_vocabulary, tmp_path, monkeypatch):
    def no(*_, **__):
        pytest.fail("pickled")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, no)
    monkeypatch.setattr(torch, "save", no)
    monkeypatch.setattr(torch, "load", no)
    save_checkpoint(tmp_path, *build(small_vocabulary), Position(vocabulary="abc"))
    load_checkpoint(tmp_path, *build(small_vocabulary), "abc")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, SUMS])
    json.loads((tmp_path / POSITION).read_text())
    for name in (WEIGHTS, OPTIMIZER):
        header = (tmp_path / name).read_bytes()
        json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])
