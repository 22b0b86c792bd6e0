"""``SPEC.yaml``: its forms, its defaults, and what it refuses."""

import re
from pathlib import Path
from textwrap import dedent

import pytest

from tadvae.store.spec import StoreSpec, load_spec, modality_sign

EVERY_SETTING = """
    datasets:
      - name: norman19
        path: screens/norman19.h5ad
        perturbation: {column: condition, control: control, separator: "+"}
        context: {column: cell_type}
        modality: CRISPRa
        batch: {column: gemgroup}
        counts: {layer: counts}
      - name: papalexi21
        path: screens/papalexi21.h5ad
        perturbation:
          column: condition
          control: [control, NT]
          missing: drop
          rename: {PDL1: CD274}
        context: {value: THP1}
        modality: {default: CRISPRko, IFNG: ligand}
        batch: bio_rep
        counts: X
        total_counts: n_umis
        genes: {column: gene_id, symbols: symbol, length: length}
      - name: carpool23
        path: screens/carpool23.h5ad
        kind: profiles
        values: log1p
        perturbation: {column: perturbation, control: control, separator: "+"}
    genes: {reference: human, max_unknown: 0.4}
    layout: {bag_size: 32, row_group_rows: 512, shard_rows: 4096, chunk_rows: 1000, seed: 3}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, files=()):
        for name in files:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / "spec.yaml").write_text(dedent(text))
        return tmp_path / "spec.yaml"

    return write


def test_the_form_of_the_readme(write):
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    specs = [
        text for text in re.findall(r"```yaml[^\n]*\n(.*?)```", readme, re.DOTALL) if "datasets:" in text
    ]
    assert specs
    for text in specs:
        spec = load_spec(write(text, re.findall(r"path: ([\w./-]+\.h5ad)", text)))
        assert spec.datasets


def test_every_setting(write, tmp_path):
    files = [f"screens/{name}.h5ad" for name in ("norman19", "papalexi21", "carpool23")]
    spec = load_spec(write(EVERY_SETTING, files))
    norman, papalexi, carpool = spec.datasets
    assert norman.path == str(tmp_path / "screens/norman19.h5ad")
    assert norman.batch is not None
    assert (norman.batch.column, norman.counts.layer, norman.kind) == ("gemgroup", "counts", "cells")
    assert norman.modality_of("anything") == "CRISPRa"
    assert papalexi.batch is not None
    assert (papalexi.batch.column, papalexi.counts.layer) == ("bio_rep", None)
    assert papalexi.perturbation is not None
    assert papalexi.perturbation.controls == {"control", "NT"}
    assert [papalexi.modality_of(name) for name in ("IFNG", "CD274")] == ["ligand", "CRISPRko"]
    assert (carpool.kind, carpool.values, carpool.context.value) == ("profiles", "log1p", "unspecified")
    assert (spec.genes.max_unknown, spec.layout.bag_size, spec.layout.seed) == (0.4, 32, 3)


def test_the_least_spec(write):
    spec = load_spec(write("datasets: [{name: a, path: a.h5ad}]", ["a.h5ad"]))
    (dataset,) = spec.datasets
    assert dataset.perturbation is None
    assert (dataset.modality, spec.genes.reference, spec.layout.bag_size) == ("unspecified", "human", 64)


def test_the_resolved_spec_is_a_spec(write):
    files = [f"screens/{name}.h5ad" for name in ("norman19", "papalexi21", "carpool23")]
    spec = load_spec(write(EVERY_SETTING, files))
    assert StoreSpec.load_text(spec.to_yaml(), "spec.yaml") == spec


def test_paths_are_relative_to_the_spec(write, tmp_path, monkeypatch):
    path = write(
        "datasets: [{name: a, path: a.h5ad}]\ngenes: {reference: tables/genes.tsv}",
        ["a.h5ad", "tables/genes.tsv"],
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for spec in (load_spec(path), load_spec("../spec.yaml")):
        assert spec.genes.reference.endswith("tables/genes.tsv")
        for name in (spec.datasets[0].path, spec.genes.reference):
            assert (tmp_path / "elsewhere" / name).exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["'datasets' is missing"]),
        ("- a\n- b", ["expected a mapping of settings"]),
        ("datasets: []", ["'datasets'", "at least 1"]),
        ("datasets: [{path: a.h5ad}]", ["'datasets.0.name' is missing"]),
        ("datasets: [{name: a, path: a.h5ad, seperator: x}]", ["'datasets.0.seperator'", "spelling"]),
        ("datasets: [{name: a, path: a.h5ad}]\nlayuot: {}", ["'layuot'", "spelling"]),
        ("datasets: [{name: a/b, path: a.h5ad}]", ["'datasets.0.name'", "'a/b'", "letters"]),
        ("datasets: [{name: a, path: a.h5ad}, {name: a, path: a.h5ad}]", ["'a' is repeated", "rename"]),
        ("datasets: [{name: Ab, path: a.h5ad}, {name: aB, path: a.h5ad}]", ["'ab' is repeated", "rename"]),
        ("datasets: [{name: a, path: a.h5ad, kind: bulk}]", ["'datasets.0.kind'", "'bulk'", "profiles"]),
        ("datasets: [{name: a, path: a.h5ad, context: {}}]", ["'datasets.0.context'", "'column' or 'value'"]),
        ("datasets: [{name: a, path: a.h5ad, modality: {A: x}}]", ["'datasets.0'", "'default'"]),
        ("datasets: [{name: a, path: a.h5ad}]\nlayout: {bag_size: 0}", ["'layout.bag_size'", "got 0"]),
        ("datasets: [{name: a, path: a.h5ad}]\ngenes: {max_unknown: 3}", ["'genes.max_unknown'", "got 3"]),
        ("datasets: [{name: a, path: a.h5ad, x: 1, y: 2}]", ["'datasets.0.x'", "1 more"]),
        ("datasets: [{name: a, path: b.h5ad}]", ["'a'", "b.h5ad", "correct its 'path'"]),
        ("datasets: [{name: a, path: .}]", ["'a'", "no file", "correct its 'path'"]),
        ("datasets: [a: b: c", ["line 1", "not valid YAML"]),
        ("datasets: \x00", ["not valid YAML"]),
    ],
)
def test_refused(refused, write, text, words):
    sentence = refused(load_spec, write(text, ["a.h5ad"]))
    for word in ["spec.yaml", *words]:
        assert word in sentence


def test_no_such_spec(refused, tmp_path):
    assert "nothing.yaml: no such file" in refused(load_spec, tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("modality", "sign"),
    [("CRISPRa", 1), ("CRISPRi", -1), ("CRISPR-KO", -1), ("Cas13d", -1), ("RNAi", -1), ("drug", 0), ("", 0)],
)
def test_modality_sign(modality, sign):
    assert modality_sign(modality) == sign
