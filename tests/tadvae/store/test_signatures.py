"""Signatures in a store: signed values as they are in the file, a control of zeros, and what is refused."""

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import sparse

from tadvae.data.group_means import group_means
from tadvae.data.reader import CellReader, load_controls
from tadvae.data.splits import SplitConfig
from tadvae.data.views import DatasetView
from tadvae.store.conversion import plan_store
from tadvae.store.spec import StoreSpec, load_spec

SIGNATURES = {
    "kind": "signatures",
    "perturbation": {"column": "drug", "separator": "+"},
    "context": {"column": "line"},
    "modality": "drug",
}
DRUGS = ["A-1", "(+)-JQ1", "Na-B", "A-1+Na-B", "zero"]


@pytest.fixture
def signatures():
    """Five signatures in each of two contexts, on ten genes; one row is zero."""
    rng = np.random.default_rng(5)
    effects = rng.normal(0, 2, (10, 10)).astype(np.float32)
    effects[np.abs(effects) < 0.4] = 0.0
    effects[[4, 9]] = 0.0
    obs = pd.DataFrame(
        {"drug": DRUGS * 2, "line": np.repeat(["T", "NK"], 5), "depth": 1.0},
        index=[f"s{i}" for i in range(10)],
    )
    return ad.AnnData(effects, obs=obs, var=pd.DataFrame(index=[f"G{g}" for g in range(1, 11)]))


def planned(spec):
    return plan_store(load_spec(spec))


@pytest.mark.parametrize("chunk_rows", [4, 8192])
@pytest.mark.parametrize("form", ["dense", "csr", "csc", "layer"])
def test_values_are_kept_as_they_are(signatures, write_spec, convert_here, stored_cells, form, chunk_rows):
    expected = signatures.X.copy()
    if form == "layer":
        signatures.layers["lfc"], signatures.X = expected, np.ones_like(expected)
    elif form != "dense":
        signatures.X = (sparse.csr_matrix if form == "csr" else sparse.csc_matrix)(expected)
    counts = {"layer": "lfc"} if form == "layer" else "X"
    spec = write_spec(signatures, **SIGNATURES, counts=counts, layout={"chunk_rows": chunk_rows})
    store = convert_here(spec)
    (entry,) = store.manifest.datasets
    assert (entry.kind, entry.values, entry.n_perturbations, entry.n_cells) == (
        "signatures",
        "effects",
        5,
        12,
    )
    labels, stored = stored_cells(store, 0)
    order = store.genes["gene"].tolist()
    values = pd.DataFrame(stored.toarray(), index=labels["cell_id"], columns=order)[signatures.var_names]
    np.testing.assert_array_equal(values.loc[signatures.obs_names], expected)
    control = labels[labels["perturbation"] == "control"]
    assert sorted(control["context"]) == ["NK", "T"]  # the zero row is not one of them
    assert (values.loc[control["cell_id"]] == 0).all(axis=None)
    assert (labels["total_counts"] == 0).all()
    assert set(labels["perturbation"]) == {"control", *DRUGS}
    store.verify_tables()
    store.verify(0, tokens=True)
    panel = store.panel(0).set_index("var_name").loc[signatures.var_names]
    np.testing.assert_allclose(panel["mean"], expected.sum(axis=0) / 12, rtol=1e-6)  # over stored rows
    assert panel["mean"].min() < 0


def test_the_control_is_zero_in_every_context(signatures, write_spec, convert_here):
    store = convert_here(write_spec(signatures, **SIGNATURES))
    reader = CellReader(store, [DatasetView(np.arange(10), "none")], SplitConfig(kind="none"))
    controls = load_controls(reader, store.bags, 100)
    assert [(len(cells), len(cells.values)) for cells in controls.values()] == [(1, 0), (1, 0)]
    means = group_means(reader, store.bags).mean
    names = store.perturbations["name"]
    found = {(store.manifest.contexts[c], names[p]): mean for (_, c, p), mean in means.items()}
    columns = signatures[:, store.genes["gene"]]
    for row, (drug, line) in enumerate(zip(signatures.obs["drug"], signatures.obs["line"], strict=True)):
        np.testing.assert_array_equal(found[line, drug], columns.X[row])
    assert not found["T", "control"].any()


def test_names_are_kept(signatures, write_spec):
    """Former symbols of genes stay as they are, also where a drug has such a name, unless genes are meant."""
    signatures.obs["drug"] = ["C19orf26", "p53", "A+B", "FOXL2", "C3orf72"] * 2
    signatures.var_names = ["C19orf26", "STAT1", "TP53", *signatures.var_names[3:]]
    settings = SIGNATURES | {"modality": {"default": "unspecified", "C3orf72": "CRISPRa"}}
    plan = planned(write_spec(signatures, **settings, reference="human", max_unknown=1.0))
    names = {target for item in plan.perturbations for target, _ in item}
    assert names == {"C19orf26", "p53", "A", "B", "FOXL2", "FOXL2NB"}
    assert plan.panels[0]["var_name"].tolist() == signatures.var_names.tolist()


def spoil_value(value):
    def spoil(signatures):
        signatures.X[3, 2] = value

    return spoil


def spoil_label(label):
    def spoil(signatures):
        signatures.obs["drug"] = signatures.obs["drug"].replace("zero", label)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_value(np.nan), ["'G3'", "'s3'", "not a finite number"]),
        (spoil_value(-np.inf), ["'G3'", "not a finite number"]),
        (spoil_value(-3e7), ["-3e+07", "too large for an effect"]),
        (spoil_label("Control"), ["'Control'", "has no row", "perturbation.exclude", "kind: profiles"]),
        (spoil_label("control"), ["'control'", "has no row", "perturbation.exclude"]),
        (spoil_label("A-1+ctrl"), ["'ctrl' of 'A-1+ctrl'", "not declared"]),
        (spoil_label(""), ["2 cells have no value"]),
    ],
)
def test_bad_signatures_are_refused(signatures, write_spec, refused, spoil, words):
    spoil(signatures)
    sentence = refused(planned, write_spec(signatures, **SIGNATURES))
    for word in words:
        assert word in sentence


def test_text_and_repeated_genes_are_refused(signatures, write_spec, refused):
    spec = write_spec(signatures, **SIGNATURES)
    with h5py.File(spec.parent / "screen0.h5ad", "a") as file:
        del file["X"]
        file["X"] = np.full((10, 10), "1.5", "S3")
        file["X"].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    assert "cannot be read" in refused(planned, spec)
    signatures.var_names = ["G1", "G1", *signatures.var_names[2:]]
    assert "G1" in refused(planned, write_spec(signatures, **SIGNATURES))


def test_controls_of_the_file(signatures, write_spec, refused, convert_here):
    """A control that is joined to targets is ignored; rows of controls are refused, unless excluded."""
    signatures.obs["drug"] = ["A+ctrl", "B+ctrl", "A+B", "C", "ctrl"] * 2
    declared = {"column": "drug", "separator": "+", "control": "ctrl"}
    spec = write_spec(signatures, **(SIGNATURES | {"perturbation": declared}))
    assert "'ctrl' in obs column 'drug' is a control" in refused(planned, spec)
    spec = write_spec(signatures, **(SIGNATURES | {"perturbation": {**declared, "exclude": ["ctrl"]}}))
    store = convert_here(spec)
    assert store.perturbations["name"].tolist() == ["control", "A", "B", "C", "A+B"]
    assert store.manifest.n_cells == 8 + 2


@pytest.mark.parametrize("values", ["counts", "positive"])
def test_values_without_a_negative_one_are_noted(signatures, write_spec, caplog, values):
    signatures.X = np.abs(signatures.X)
    if values == "counts":
        signatures.X = np.rint(signatures.X)
    planned(write_spec(signatures, **SIGNATURES))
    assert "none of its values is negative" in caplog.text
    assert "kind: profiles" in caplog.text


def test_other_kinds_refuse_negative_values(signatures, write_spec, refused):
    control = {"column": "drug", "control": "zero"}
    for kind in ("cells", "profiles"):
        settings = {"kind": kind, "values": "log1p", "perturbation": control, "context": {"value": "T"}}
        assert "is negative" in refused(planned, write_spec(signatures, **settings))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"values": "log1p"}, "belong together"),
        ({"kind": "profiles", "values": "effects"}, "belong together"),
        ({"total_counts": "depth"}, "total_counts"),
        ({"counts": {"round": True}}, "counts.round"),
        ({"perturbation": None}, "need 'perturbation'"),
        ({"kind": "profiles"}, "needs 'control'"),
    ],
)
def test_settings_that_signatures_do_not_have(refused, settings, words):
    dataset = {"name": "a", "path": "a.h5ad", **SIGNATURES, **settings}
    assert words in refused(StoreSpec.parse, {"datasets": [dataset]}, "spec.yaml")


def test_a_spec_comes_back_from_its_own_text():
    spec = StoreSpec.parse({"datasets": [{"name": "a", "path": "a.h5ad", **SIGNATURES}]}, "spec.yaml")
    assert StoreSpec.parse(yaml.safe_load(spec.to_yaml()), "spec.yaml") == spec
