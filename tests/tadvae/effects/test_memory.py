"""A regression that does not fit into the memory is refused before cells are averaged."""

import pytest

from tadvae.data.group_means import group_means
from tadvae.effects import memory, observe
from tadvae.effects.memory import memory_of_this_machine, require_memory
from tadvae.settings.experiment import ExperimentConfig
from tadvae.training.prepare import prepare_training


def test_the_sentence_says_how_much(monkeypatch, refused):
    monkeypatch.setattr(memory, "memory_of_this_machine", lambda: 16 * 2**30)
    require_memory(12_000, 100)
    sentence = refused(require_memory, 24_000, 100)
    assert "needs about 56 GiB for 24,000 training conditions" in sentence
    assert "has 16 GiB" in sentence
    refused(require_memory, 100, 24_000)


def test_this_machine_has_memory():
    assert 2**28 < memory_of_this_machine() < 2**50


def test_no_limit_is_known(monkeypatch):
    monkeypatch.setattr(memory, "memory_of_this_machine", lambda: None)
    require_memory(10**6, 0)


@pytest.mark.parametrize("weight", [0.7, 0.0])
def test_it_is_refused_before_the_cells_are_read(store, simulated, monkeypatch, refused, weight):
    averaged = []

    def averages(*arguments):
        averaged.append(arguments)
        return group_means(*arguments)

    monkeypatch.setattr(memory, "memory_of_this_machine", lambda: 100)
    monkeypatch.setattr(observe, "group_means", averages)
    settings = [f"pathways.file={simulated.folder / 'pathways.gmt'}", f"effects.weight={weight}"]
    config = ExperimentConfig.load(None, [*settings, "model.pathway={d_embed: 16, n_heads: 2}"])
    if weight:
        assert "effects.weight=0" in refused(prepare_training, store, config)
    else:
        assert prepare_training(store, config).effects is None
    assert not averaged
