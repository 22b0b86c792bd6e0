"""The datasets of a store as files: what other programs read, and what converts back to the same store."""

import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import yaml
from local_conversion import convert_locally
from scipy import sparse

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.store.export import export
from tadvae.store.reader import Store


def write(place, values, obs, genes):
    obs = pd.DataFrame(obs, index=[f"{place.stem}-{i}" for i in range(len(values))])
    ad.AnnData(sparse.csr_matrix(values.astype(np.float32)), obs, pd.DataFrame(index=genes)).write_h5ad(place)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Store:
    """Cells with batches, doses, donors and library sizes; profiles of log values; signatures."""
    folder, rng = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    genes = ["KLF1", "GATA1", "SPI1", "JUN", "TP53", "MYC", "UNKNOWN-GENE"]
    labels = ["control", "KLF1", "KLF1+JUN", "MYC"] * 6
    counts = rng.poisson(2, (24, len(genes)))
    counts[3] = 0
    obs = {"condition": labels, "line": ["one", "two"] * 12, "batch": ["b1", "b2", "b2"] * 8}
    obs |= {"dose": [0 if each == "control" else 10 for each in labels], "donor": ["d1"] * 12 + ["d2"] * 12}
    write(folder / "cells.h5ad", counts, obs | {"umis": counts.sum(1) + 5.0}, genes)
    profiles = {"condition": ["ctrl", "GATA1", "SPI1"]}
    write(folder / "means.h5ad", rng.uniform(0, 3, (3, 4)), profiles, ["ENSG00000105610", *genes[1:4]])
    write(folder / "effects.h5ad", rng.normal(size=(2, 3)), {"condition": ["JUN", "MYC"]}, genes[:3])
    by = {"column": "condition", "separator": "+"}
    cells = {
        "name": "cells", "path": "cells.h5ad", "perturbation": by | {"control": "control"}, "batch": "batch",
        "context": {"column": "line"}, "modality": {"default": "CRISPRa", "JUN": "CRISPRi"},
        "total_counts": "umis",
        "covariates": {"dose": {"column": "dose", "unit": "uM"}, "donor": {"column": "donor"}},
    }  # fmt: skip
    means = {"name": "means", "path": "means.h5ad", "kind": "profiles", "values": "log1p"}
    means |= {"perturbation": by | {"control": "ctrl"}}
    effects = {"name": "effects", "path": "effects.h5ad", "kind": "signatures", "perturbation": by}
    spec = folder / "spec.yaml"
    spec.write_text(yaml.safe_dump({"datasets": [cells, means, effects]}))
    return convert_locally(spec, Location.of(folder / "store"))


def rows(store: Store, stored_cells, name: str) -> pd.DataFrame:
    """All that is stored of a dataset's cells, by cell."""
    names = [entry.name for entry in store.manifest.datasets]
    cells, values = stored_cells(store, names.index(name))
    table = pd.DataFrame(values.toarray(), columns=store.genes["gene"].tolist(), index=cells["cell_id"])
    measured = store.panel(names.index(name))["gene"]
    return cells.set_index("cell_id").join(table[measured]).sort_index()


def test_a_store_comes_back(mixed, stored_cells, tmp_path):
    """Cells, labels, amounts, library sizes and panels, of counts and of log values."""
    places = export(mixed, Location.of(tmp_path / "files"))
    assert [place.name for place in places] == ["cells.h5ad", "means.h5ad"]
    again = convert_locally(tmp_path / "files" / "spec.yaml", Location.of(tmp_path / "again"))
    for name in ("cells", "means"):
        pd.testing.assert_frame_equal(rows(again, stored_cells, name), rows(mixed, stored_cells, name))
    keys = ["name", "modalities", "signs", "dose"]
    old = mixed.perturbations[mixed.perturbations["n_cells"].str.len() > 0]
    old = old[[any(part["dataset"] != 2 for part in each) for each in old["n_cells"]]]
    for key in keys:
        assert list(map(str, again.perturbations[key])) == list(map(str, old[key])), key
    entries = again.manifest.datasets
    for found, expected in zip(entries, mixed.manifest.datasets[:2], strict=True):
        same = ("covariates", "contexts", "values", "kind", "has_total_counts", "n_cells", "n_genes")
        assert [getattr(found, each) for each in same] == [getattr(expected, each) for each in same]


def test_what_other_programs_read(mixed, tmp_path):
    """Labels of GEARS, values as scanpy normalises counts, names of genes."""
    place, *_ = export(mixed, Location.of(tmp_path / "files"))
    adata = ad.read_h5ad(str(place))
    assert set(adata.obs["condition"]) == {"ctrl", "KLF1+ctrl", "JUN+KLF1", "MYC+ctrl"}
    assert adata.var["gene_name"].tolist()[:2] == [
        adata.var_names[0],
        adata.var_names[1],
    ]
    expected = adata.layers["counts"].toarray()
    per_unit = 1e4 / np.maximum(adata.obs["total_counts"].to_numpy(), 1)
    np.testing.assert_allclose(adata.X.toarray(), np.log1p(expected * per_unit[:, None]), rtol=1e-5)
    assert (adata.obs["total_counts"].to_numpy() == expected.sum(1) + 5).all()
    sc.pp.highly_variable_genes(adata, n_top_genes=3)  # it is an AnnData like any other


def test_a_store_of_simulated_screens_comes_back(store, stored_cells, tmp_path):
    """Also without a reference of genes."""
    export(store, Location.of(tmp_path / "files"))
    again = convert_locally(tmp_path / "files" / "spec.yaml", Location.of(tmp_path / "again"))
    for entry in store.manifest.datasets:
        pd.testing.assert_frame_equal(
            rows(again, stored_cells, entry.name), rows(store, stored_cells, entry.name)
        )


def test_genes_of_ones_own_come_back(stored_cells, tmp_path):
    """Of another organism: the table of genes goes with the files."""
    (tmp_path / "mouse.tsv").write_text("ensembl_id\tsymbol\nENSMUSG00000000001\tGnai3\n\tKlf1\n")
    labels = {"condition": ["control", "Klf1", "control"]}
    write(tmp_path / "mouse.h5ad", np.arange(6).reshape(3, 2) + 1, labels, ["Gnai3", "Klf1"])
    dataset = {"name": "mouse", "path": "mouse.h5ad"}
    dataset |= {"perturbation": {"column": "condition", "control": "control"}}
    spec = {"genes": {"reference": str(tmp_path / "mouse.tsv")}, "datasets": [dataset]}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    store = convert_locally(tmp_path / "spec.yaml", Location.of(tmp_path / "store"))
    (place,) = export(store, Location.of(tmp_path / "files"))
    assert ad.read_h5ad(str(place)).var["gene_name"].tolist() == ["Gnai3", "Klf1"]
    again = convert_locally(tmp_path / "files" / "spec.yaml", Location.of(tmp_path / "again"))
    pd.testing.assert_frame_equal(again.genes, store.genes)
    pd.testing.assert_frame_equal(rows(again, stored_cells, "mouse"), rows(store, stored_cells, "mouse"))


def of_labels(folder, labels: list[str], separator: str) -> Store:
    """Three genes in one cell of each label."""
    folder.mkdir()
    counts = np.arange(3 * len(labels)).reshape(-1, 3) + 1
    write(folder / "cells.h5ad", counts, {"condition": labels}, ["KLF1", "JUN", "MYC"])
    dataset = {"name": "cells", "path": "cells.h5ad"}
    dataset |= {"perturbation": {"column": "condition", "control": "control", "separator": separator}}
    (folder / "spec.yaml").write_text(yaml.safe_dump({"datasets": [dataset]}))
    return convert_locally(folder / "spec.yaml", Location.of(folder / "store"))


def test_targets_with_a_plus_in_their_names_stay_single(stored_cells, tmp_path):
    store = of_labels(tmp_path / "screen", ["control", "IL2+IL15", "(+)-JQ1", "IL2+IL15;MYC"], ";")
    export(store, Location.of(tmp_path / "files"))
    again = convert_locally(tmp_path / "files" / "spec.yaml", Location.of(tmp_path / "again"))
    assert list(map(list, again.perturbations["targets"])) == list(map(list, store.perturbations["targets"]))
    pd.testing.assert_frame_equal(rows(again, stored_cells, "cells"), rows(store, stored_cells, "cells"))


def test_names_that_leave_no_separator_are_refused(tmp_path):
    store = of_labels(tmp_path / "screen", ["control", "a+b|c;d&e,f"], "~")
    with pytest.raises(UserError, match="rename some and convert again"):
        export(store, Location.of(tmp_path / "files"))
    assert not (tmp_path / "files").exists()


def test_of_a_damaged_store_nothing_is_written(mixed, tmp_path):
    """Also what was whole, before the damage was found."""
    shutil.copytree(str(mixed.folder), tmp_path / "store")
    shard = next((tmp_path / "store" / "cells" / "dataset=means").iterdir())
    data = bytearray(shard.read_bytes())
    data[20:60] = bytes(40)
    shard.write_bytes(data)
    with pytest.raises(UserError, match="dataset=means"):
        export(Store.open(str(tmp_path / "store")), Location.of(tmp_path / "files"))
    assert list((tmp_path / "files").iterdir()) == []


def test_a_folder_with_files_and_a_store_without_cells_are_refused(mixed, tmp_path):
    (tmp_path / "x").write_text("mine")
    with pytest.raises(UserError, match="expected a new or empty folder, found files"):
        export(mixed, Location.of(tmp_path))
    assert (tmp_path / "x").read_text() == "mine"
    mixed_manifest = mixed.manifest
    only = mixed_manifest.model_copy(update={"datasets": [mixed_manifest.datasets[2]]})
    mixed.manifest = only
    try:
        with pytest.raises(UserError, match="signatures only"):
            export(mixed, Location.of(tmp_path / "files"))
    finally:
        mixed.manifest = mixed_manifest
    assert not (tmp_path / "files").exists()
