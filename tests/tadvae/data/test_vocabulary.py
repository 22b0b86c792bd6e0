"""The vocabulary of a model: a folder and back, damaged folders, and what it says of contexts."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tadvae.base.filesystem import Location
from tadvae.data.vocabulary import Vocabulary
from tadvae.nn.losses import LossConfig
from tadvae.nn.network import ModelConfig, TADVAEModule
from tadvae.store.manifest import vocabulary_hash

FILES = ["vocabulary.json", "genes.parquet", "pathways.parquet", "profiles.safetensors"]


@pytest.fixture
def folder(small_vocabulary, tmp_path):
    small_vocabulary.save(Location.of(tmp_path))
    return tmp_path


def load(folder):
    return Vocabulary.load(Location.of(folder))


def change_json(folder, change):
    path = folder / "vocabulary.json"
    text = json.loads(path.read_text())
    change(text)
    path.write_text(json.dumps(text))


def same_entries(found, expected, array):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(getattr(one, array), getattr(other, array))
        assert getattr(one, array).dtype == getattr(other, array).dtype
        assert replace(one, **{array: None}) == replace(other, **{array: None})


def test_round_trip(small_vocabulary, folder):
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    found = load(folder)
    pd.testing.assert_frame_equal(found.genes, small_vocabulary.genes)
    assert found.membership.pathway_ids == small_vocabulary.membership.pathway_ids
    assert found.membership.names == small_vocabulary.membership.names
    np.testing.assert_array_equal(found.membership.dense(), small_vocabulary.membership.dense())
    same_entries(found.datasets, small_vocabulary.datasets, "genes")
    same_entries(found.contexts, small_vocabulary.contexts, "profile")
    for name in ("min_measured", "targets", "modalities", "signs", "reference", "hash"):
        assert getattr(found, name) == getattr(small_vocabulary, name), name
    np.testing.assert_array_equal(found.available, small_vocabulary.available)


def test_a_loaded_vocabulary_makes_the_same_model(small_vocabulary, folder, small_batch, pack_small):
    losses = []
    for vocabulary in (small_vocabulary, load(folder)):
        torch.manual_seed(0)
        module = TADVAEModule(ModelConfig(), LossConfig(), vocabulary).double()
        losses.append(module(pack_small(small_batch), 1.0, None)[0].item())
    assert losses[0] == losses[1]


def test_empty_parts(small_vocabulary, tmp_path):
    empty = replace(small_vocabulary, datasets=[], contexts=[], targets=[], modalities=[], signs=[])
    empty.save(Location.of(tmp_path))
    found = load(tmp_path)
    assert found.datasets == found.contexts == found.targets == []
    assert found.available.shape == (0, 6)


def test_what_it_knows(small_vocabulary):
    assert small_vocabulary.n_genes == 12
    assert small_vocabulary.available.tolist() == [
        [True, True, False, True, False, True],
        [True, True, True, True, False, False],
    ]
    assert small_vocabulary.gene_index["G11"] == 11
    assert small_vocabulary.target_index == {"G11": 0, "G0": 1, "G9": 2, "ligand": 3}
    assert small_vocabulary.symbols(np.array([4, 0, 1])) == ["S4", "G0", "S1"]
    assert small_vocabulary.hash == vocabulary_hash(small_vocabulary.genes["gene"])
    other = replace(small_vocabulary, genes=small_vocabulary.genes[::-1])
    assert other.hash != small_vocabulary.hash


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "garbage"])
def test_damaged_folder(folder, refused, name, damage):
    content = (folder / name).read_bytes()
    if damage == "missing":
        (folder / name).unlink()
    else:
        bad = {"empty": b"", "truncated": content[: len(content) // 2], "garbage": b"\xff\x00?" * 40}
        (folder / name).write_bytes(bad[damage])
    sentence = refused(load, folder)
    assert str(folder) in sentence
    assert ("not a model folder" if (name, damage) == (FILES[0], "missing") else "damaged") in sentence


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.pop("targets"),
        lambda text: text.pop("hash"),
        lambda text: text.update(datasets=3),
        lambda text: text["datasets"][0].update(target_modality=[0]),
        lambda text: text["datasets"][0].update(unknown=1),
        lambda text: text["datasets"].append(dict(text["datasets"][0])),
        lambda text: text["pathways"].pop(),
        lambda text: text["contexts"][0].update(dataset=1),  # a profile over another panel
        lambda text: text["contexts"][0].update(dataset=7),
        lambda text: text["targets"].append("G1"),
        lambda text: text["contexts"][0].update(dataset=-1),
        lambda text: text["contexts"][0].update(n_controls=-1),
        lambda text: text["targets"][0].update(gene=12),
        lambda text: text["targets"][0].update(gene=-2),
        lambda text: text["targets"][0].update(gene=0.5),
        lambda text: text["targets"][0].update(name=["G1"]),
        lambda text: text["datasets"][0].update(modality=3),
        lambda text: text["datasets"][0].update(method="/etc/passwd"),
        lambda text: text["datasets"][0].update(kind="images"),
        lambda text: text["datasets"][0].update(target_modality={"9": 0}),
        lambda text: text["datasets"][0].update(target_modality={"0": 9}),
        lambda text: text.update(signs=[1, -1]),
        lambda text: text.update(signs=[1, -1, 7]),
        lambda text: text.update(min_measured="5"),
        lambda text: text.update(reference="/etc/passwd"),
    ],
)
def test_damaged_text(folder, refused, change):
    change_json(folder, change)
    assert "damaged" in refused(load, folder)


@pytest.mark.parametrize("text", ["[]", "null", "3", '"text"'])
def test_text_that_is_no_vocabulary(folder, refused, text):
    (folder / "vocabulary.json").write_text(text)
    assert "damaged" in refused(load, folder)


def test_panel_with_genes_that_do_not_exist(folder, refused):
    arrays = load_file(folder / "profiles.safetensors")
    arrays["dataset.0"] = arrays["dataset.0"] + 100
    save_file(arrays, folder / "profiles.safetensors")
    assert "damaged" in refused(load, folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.update({"dataset.0": arrays["dataset.0"][::-1].copy()}),
        lambda arrays: arrays.update({"dataset.0": arrays["dataset.0"].astype(np.float32)}),
        lambda arrays: arrays["context.0"].__setitem__(0, np.nan),
        lambda arrays: arrays["context.0"].__setitem__(0, np.inf),
        lambda arrays: arrays.update({"context.0": arrays["context.0"].astype(np.float64)}),
    ],
    ids=["unsorted", "no indices", "NaN", "infinite", "another type"],
)
def test_damaged_arrays(folder, refused, change):
    arrays = load_file(folder / "profiles.safetensors")
    change(arrays)
    save_file(arrays, folder / "profiles.safetensors")
    assert "damaged model folder" in refused(load, folder)


def test_genes_of_another_model(small_vocabulary, folder, tmp_path_factory, refused):
    other = tmp_path_factory.mktemp("other")
    renamed = small_vocabulary.genes.assign(gene=[f"X{g}" for g in range(12)])
    replace(small_vocabulary, genes=renamed).save(Location.of(other))
    (folder / "genes.parquet").write_bytes((other / "genes.parquet").read_bytes())
    sentence = refused(load, folder)
    assert small_vocabulary.hash in sentence
    assert "genes.parquet" in sentence


def test_genes_without_their_column(small_vocabulary, folder, refused):
    small_vocabulary.genes.rename(columns={"gene": "name"}).to_parquet(folder / "genes.parquet")
    assert "damaged" in refused(load, folder)


def test_no_model_folder(tmp_path, refused):
    assert "not a model folder" in refused(load, tmp_path)
    assert "not a model folder" in refused(load, tmp_path / "nowhere")


def test_context_by_name(small_vocabulary, refused):
    assert small_vocabulary.context("A549") == 1
    assert small_vocabulary.context("A549", "screen") == 1
    assert small_vocabulary.context("K562", "screen") == 0
    assert small_vocabulary.context("K562", "means") == 2
    sentence = refused(small_vocabulary.context, "HeLa")
    assert "'HeLa'" in sentence
    assert "A549, K562" in sentence
    assert "--controls" in sentence
    sentence = refused(small_vocabulary.context, "K562")
    assert "screen, means" in sentence
    assert "--dataset" in sentence
    sentence = refused(small_vocabulary.context, "A549", "means")
    assert "'means' has no context 'A549'" in sentence
    assert "it is in screen" in sentence
    assert "'nothing'" in refused(small_vocabulary.context, "K562", "nothing")
