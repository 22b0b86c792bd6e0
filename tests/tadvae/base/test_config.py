"""Configs: YAML in and out, dotted overrides, and one clear sentence for what is wrong."""

import re
from pathlib import Path

import pytest
from pydantic import Field

from tadvae.base.config import Config, override, read_yaml
from tadvae.settings.experiment import ExperimentConfig


class Inner(Config):
    rate: float = Field(0.1, gt=0)
    names: list[str] = []


class Outer(Config):
    """Of a test."""

    size: int
    inner: Inner = Inner()


@pytest.fixture
def write(tmp_path):
    def write(text):
        (tmp_path / "config.yaml").write_text(text)
        return tmp_path / "config.yaml"

    return write


def test_file_and_overrides(write):
    path = write("size: 3\ninner: {rate: 0.5}\n")
    config = Outer.load(path, ["inner.names=[a, b]", "size=4"])
    assert config == Outer(size=4, inner=Inner(rate=0.5, names=["a", "b"]))
    assert Outer.load(None, ["size=1"]) == Outer(size=1)


def test_round_trip():
    config = Outer(size=2, inner=Inner(names=["x"]))
    assert "rate: 0.1" in config.to_yaml()  # defaults are written out
    assert Outer.load_text(config.to_yaml(), "x") == config


def test_override_of_a_key_with_dots():
    data = {"parameters": {"loss.sparsity": {"choice": [0, 1]}}, "train": {"epochs": 5}}
    items = [
        "parameters.loss.sparsity={choice: [2]}",
        "parameters.train.epochs={choice: [3]}",
        "train.epochs=1",
    ]
    assert override(data, items) == {
        "parameters": {"loss.sparsity": {"choice": [2]}, "train.epochs": {"choice": [3]}},
        "train": {"epochs": 1},
    }
    assert override({"names": {3: "a"}}, ["names.b=c"]) == {"names": {3: "a", "b": "c"}}


def test_override_leaves_its_input_alone():
    data = {"a": {"b": 1}}
    assert override(data, ["a.b=2", "a.c.d=null", "e=[1, 2]"]) == {
        "a": {"b": 2, "c": {"d": None}},
        "e": [1, 2],
    }
    assert data == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("size", ["--set size", "key=value"]),
        ("=3", ["--set =3", "key=value"]),
        ("size.x=1", ["'size' is a value"]),
        ("size=[1", ["not valid YAML"]),
        ("sise=1", ["unknown setting 'sise'", "spelling"]),
        ("size=big", ["'size'", "integer", "'big'"]),
        ("inner.rate=-1", ["'inner.rate'", "greater than 0", "-1"]),
        ("inner=7", ["'inner'", "mapping of settings", "7"]),
        (f"inner.rate={'x' * 500}", ["'inner.rate'", "…"]),
    ],
)
def test_wrong_override(refused, write, item, words):
    sentence = refused(Outer.load, write("size: 3"), [item])
    assert len(sentence) < 300
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", ["config.yaml", "mapping"]),
        ("inner: {}", ["config.yaml", "'size' is missing"]),
        ("a: b: c", ["config.yaml, line 1", "not valid YAML"]),
        ("size: 1\n\tinner: 2", ["config.yaml, line 2", "not valid YAML"]),
        ("", ["'size' is missing"]),
    ],
)
def test_wrong_file(refused, write, text, words):
    sentence = refused(Outer.load, write(text))
    for word in words:
        assert word in sentence


def test_unreadable_file(refused, tmp_path):
    assert "no such file" in refused(read_yaml, tmp_path / "none.yaml")
    assert "cannot be read" in refused(read_yaml, tmp_path)
    (tmp_path / "latin.yaml").write_bytes("größe: 1".encode("latin-1"))
    assert "UTF-8" in refused(read_yaml, tmp_path / "latin.yaml")


def test_damaged_saved_config(refused):
    assert "run/config.yaml, line 1" in refused(Outer.load_text, "a: b: c", "run/config.yaml")


def test_yaml_makes_no_objects(refused, write):
    assert "not valid YAML" in refused(read_yaml, write("!!python/object/apply:os.getcwd []"))


def test_configs_do_not_change():
    with pytest.raises(ValueError, match="frozen"):
        Outer(size=1).size = 2  # type: ignore[misc]


def test_files_of_an_experiment_hold_in_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = [
        "pathways.file=sets.gmt",
        "preprocess.genes=genes.txt",
        "model.pathway={masking: members, pathway_init: text, pathway_vectors: text.tsv, gene_vectors: s3://lab/genes.parquet}",
    ]
    config = ExperimentConfig.load(None, settings).located()
    assert config.pathways.file == str(tmp_path / "sets.gmt")
    assert config.preprocess.genes == str(tmp_path / "genes.txt")
    assert config.model.pathway.pathway_vectors == str(tmp_path / "text.tsv")
    assert config.model.pathway.gene_vectors == "s3://lab/genes.parquet"
    assert ExperimentConfig().located() == ExperimentConfig()


def test_every_setting_that_names_a_file_is_marked():
    """A file setting without its marker would be looked for in the folder of a worker or a trial."""
    from pydantic import BaseModel

    def walk(model, prefix=""):
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from walk(field.annotation, f"{prefix}{name}.")
            elif field.annotation in (str, str | None) and re.search(
                r"\b(files?|GMT|folder)\b", field.description, re.I
            ):
                yield prefix + name

    marked = {key for key, marker in ExperimentConfig.every_setting() if marker is not None}
    assert marked == set(walk(ExperimentConfig))
    assert marked == {
        "origin",
        "pathways.file",
        "preprocess.genes",
        "model.pathway.gene_vectors",
        "model.pathway.pathway_vectors",
    }


def test_paths_in_a_file_start_from_its_folder(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/a.yaml").write_text(
        "pathways: {file: ../sets.gmt}\npreprocess: {genes: all}\n"
        "model: {pathway: {masking: members, gene_vectors: s3://lab/genes.parquet}}\n"
    )
    monkeypatch.chdir(tmp_path)
    config = ExperimentConfig.load("configs/a.yaml")
    assert Path(config.pathways.file).resolve() == tmp_path / "sets.gmt"
    assert config.preprocess.genes == "all"
    assert config.model.pathway.gene_vectors == "s3://lab/genes.parquet"
    config = ExperimentConfig.load("configs/a.yaml", ["preprocess.genes=mine.txt"]).located()
    assert config.preprocess.genes == str(tmp_path / "mine.txt")
