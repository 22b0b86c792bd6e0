"""Files as people have them: .raw, zarr, layouts of older anndata, and files whose data lie elsewhere."""

import os
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse

from tadvae.store.conversion import plan_store
from tadvae.store.h5ad import read_adata
from tadvae.store.source import open_source
from tadvae.store.spec import load_spec


@pytest.fixture
def expect(refused, write_spec, tmp_path):
    """Spoil the file of a screen; its conversion is refused with these words, and nothing is written."""

    def expect(screen, *words, spoil=lambda path: None, **settings):
        spec = write_spec(screen, **settings)
        spoil(tmp_path / "screen0.h5ad")
        before = sorted(tmp_path.rglob("*"))
        sentence = refused(lambda: plan_store(load_spec(spec)))
        for word in ("'screen0'", str(tmp_path / "screen0.h5ad"), *words):
            assert word in sentence
        assert sorted(tmp_path.rglob("*")) == before
        return sentence

    return expect


@pytest.fixture
def stored(convert_here, stored_cells):
    """Convert; return the cells as a table by cell and gene, and the store."""

    def stored(spec, name="store"):
        store = convert_here(spec, name)
        cells, values = stored_cells(store, 0)
        panel = store.panel(0)
        table = pd.DataFrame(
            values[:, panel["gene_index"]].toarray(), index=cells["cell_id"], columns=panel["source"].tolist()
        )
        return table, store

    return stored


def normalised(counts):
    X = counts.toarray()
    return sparse.csr_matrix(np.log1p(1e4 * X / np.maximum(X.sum(axis=1, keepdims=True), 1)))


@pytest.fixture
def with_raw(screen):
    """Counts of all genes in .raw, log-normalised values of some genes in X."""
    raw = screen.copy()
    screen.X = normalised(screen.X)
    screen.raw = raw
    return screen[:, [3, 1, 7, 5]].copy(), raw


def test_counts_in_raw(with_raw, write_spec, stored):
    screen, raw = with_raw
    table, store = stored(write_spec(screen, counts="raw"))
    pd.testing.assert_frame_equal(
        table.loc[raw.obs_names, raw.var_names], raw.to_df().astype(float), check_names=False
    )
    assert store.manifest.datasets[0].n_genes == 10


def test_a_layer_called_raw_comes_first(with_raw, write_spec, stored):
    screen, _ = with_raw
    screen.layers["raw"] = np.full(screen.shape, 3.0)
    table, _ = stored(write_spec(screen, counts="raw"))
    assert (table == 3).all(axis=None)


def test_a_message_about_counts_names_raw(with_raw, expect):
    screen, _ = with_raw
    expect(screen, "'counts: raw', which is .raw", "values: log1p")
    expect(screen, "no layer 'counts'", "'counts: raw' is .raw", counts={"layer": "counts"})


def test_only_matrices_that_hold_counts_are_advised(with_raw, expect):
    """Otherwise two layers of logarithms would advise each other."""
    screen, _ = with_raw
    screen.layers["logs"], screen.layers["halves"] = screen.X.copy(), screen.X.copy()
    screen.layers["counts"] = np.full(screen.shape, 3.0)
    for counts in ("X", "logs", "halves"):
        sentence = expect(screen, "'counts: {layer: counts}' or 'counts: raw', which is .raw", counts=counts)
        assert not any(place in sentence for place in ("layer: logs", "layer: halves", "counts: X"))
    del screen.layers["counts"], screen.raw
    for counts in ("X", "logs"):
        expect(screen, "give a file with raw counts", counts=counts)


def test_no_raw_in_the_file(screen, expect):
    expect(screen, "no layer 'raw' and no .raw", counts="raw")


@pytest.mark.parametrize(
    ("form", "version"), [(np.asarray, 3), (sparse.csr_matrix, 2), (sparse.csc_matrix, 3)]
)
def test_a_zarr_folder_converts_as_the_file_does(screen, write_spec, stored, tmp_path, form, version):
    screen.X = form(screen.X.toarray())
    screen.raw = screen.copy()
    spec = write_spec(screen, counts="raw", layout={"chunk_rows": 7})
    expected, from_file = stored(spec)
    write_zarr(screen, tmp_path / "screen0.zarr", version)
    spec.write_text(spec.read_text().replace("screen0.h5ad", "screen0.zarr"))
    table, from_folder = stored(spec, "other")
    pd.testing.assert_frame_equal(table, expected)
    assert from_folder.bags.equals(from_file.bags)
    before = plan_store(load_spec(spec)).fingerprint()
    at = next((tmp_path / "screen0.zarr" / "obs").rglob("*"))
    os.utime(at, (2e9, 2e9))
    assert plan_store(load_spec(spec)).fingerprint() != before or at.is_dir()


def write_zarr(screen, path, version=3):
    with warnings.catch_warnings(), ad.settings.override(zarr_write_format=version):
        warnings.simplefilter("ignore")  # anndata warns of both versions
        screen.write_zarr(path)


def test_a_folder_that_is_no_zarr(screen, write_spec, refused, tmp_path):
    spec = write_spec(screen)
    (tmp_path / "screen0.h5ad").unlink()
    (tmp_path / "screen0.h5ad").mkdir()
    assert "no file at" in refused(load_spec, spec)
    zarr.open_group(str(tmp_path / "screen0.h5ad"), mode="w")
    assert "zarr, but not an AnnData: it has no obs, var, X" in refused(plan_store, load_spec(spec))


def test_a_zarr_folder_with_links_out_of_it(screen, write_spec, refused, tmp_path):
    spec = write_spec(screen)
    write_zarr(screen, tmp_path / "screen0.zarr")
    (tmp_path / "screen0.zarr/X").rename(tmp_path / "elsewhere")
    (tmp_path / "screen0.zarr/X").symlink_to(tmp_path / "elsewhere")
    spec.write_text(spec.read_text().replace("screen0.h5ad", "screen0.zarr"))
    assert "a link out of it" in refused(plan_store, load_spec(spec))
    (tmp_path / "screen0.zarr/X").unlink()
    (tmp_path / "elsewhere").rename(tmp_path / "screen0.zarr/X")
    plan_store(load_spec(spec))
    os.mkfifo(tmp_path / "screen0.zarr/X/data/pipe")  # opening it would wait for ever
    assert "a device" in refused(plan_store, load_spec(spec))


def old_frame(frame, uns):
    """A table as anndata before 0.7 stored it: records, codes of categories, categories in uns."""
    fields = [("index", frame.index.to_numpy("S"))]
    for name in frame:
        column = frame[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            uns[f"{name}_categories"] = column.cat.categories.to_numpy("S")
            fields.append((name, column.cat.codes.to_numpy()))
        else:
            fields.append((name, column.to_numpy()))
    records = np.empty(len(frame), [(name, values.dtype) for name, values in fields])
    for name, values in fields:
        records[name] = values
    return records


def write_old(screen, path, sparse_matrix=True):
    """The layout of anndata 0.6, with the counts in .raw too."""
    X = screen.X.tocsr()
    with h5py.File(path, "w") as file:
        uns = file.create_group("uns")
        file["obs"], file["var"] = old_frame(screen.obs, uns), old_frame(screen.var, uns)
        file["raw.var"] = file["var"][()]
        for name in ("X", "raw.X"):
            if not sparse_matrix:
                file[name] = X.toarray()
                continue
            group = file.create_group(name)
            group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = b"csr", X.shape
            group["data"], group["indices"], group["indptr"] = X.data, X.indices, X.indptr


@pytest.mark.parametrize("sparse_matrix", [True, False])
@pytest.mark.parametrize("counts", ["X", "raw"])
def test_the_layout_of_anndata_0_6(screen, write_spec, stored, tmp_path, sparse_matrix, counts):
    screen.obs["condition"] = screen.obs["condition"].astype("category")
    screen.obs["line"] = screen.obs["line"].astype("category")
    del screen.obs["lane"]
    expected, new = stored(write_spec(screen))
    spec = write_spec(screen, counts=counts)
    write_old(screen, tmp_path / "screen0.h5ad", sparse_matrix)
    table, old = stored(spec, "old")
    pd.testing.assert_frame_equal(table, expected)
    assert old.perturbations.equals(new.perturbations)
    assert old.manifest.contexts == ["A549", "K562"]


def test_categories_of_anndata_0_7(screen, write_spec, stored, tmp_path):
    """Codes with a reference to their categories, in the group __categories."""
    expected, _ = stored(write_spec(screen))
    spec = write_spec(screen)
    with h5py.File(tmp_path / "screen0.h5ad", "r+") as file:
        column = screen.obs["condition"].astype("category")
        del file["obs/condition"]
        file["obs/condition"] = column.cat.codes.to_numpy()
        file["obs/__categories/condition"] = column.cat.categories.to_numpy(object)
        file["obs/condition"].attrs["categories"] = file["obs/__categories/condition"].ref
        file["obs"].attrs["encoding-version"] = "0.1.0"
    table, store = stored(spec, "old")
    pd.testing.assert_frame_equal(table, expected)
    assert set(store.perturbations["name"]) == {"control", "G1", "G2", "G1+G2"}


# --- data in another file -------------------------------------------------------------------------


def external_link(name):
    def spoil(path):
        with h5py.File(path, "r+") as file, h5py.File(path.with_name("other.h5"), "w") as other:
            file.copy(name, other, "it")
            del file[name]
            file[name] = h5py.ExternalLink("other.h5", "/it")

    return spoil


def soft_link_to_an_external_one(path):
    external_link("X")(path)
    with h5py.File(path, "r+") as file:
        file["far"] = h5py.ExternalLink("other.h5", "/")
        del file["X"]
        file["between"] = h5py.SoftLink("/far/it")
        file["X"] = h5py.SoftLink("between")


def external_storage(path):
    secret = path.with_name("secret")
    secret.write_bytes(np.arange(480, dtype=np.float32).tobytes())
    with h5py.File(path, "r+") as file:
        del file["X"]
        file.create_dataset("X", (48, 10), np.float32, external=[(str(secret), 0, 1920)])


def virtual(path):
    with h5py.File(path.with_name("other.h5"), "w") as other:
        other["it"] = np.ones((48, 10), np.float32)
    with h5py.File(path, "r+") as file:
        del file["X"]
        layout = h5py.VirtualLayout((48, 10), np.float32)
        layout[:] = h5py.VirtualSource(str(path.with_name("other.h5")), "it", (48, 10))
        file.create_virtual_dataset("X", layout)


def reference_to_external_storage(path):
    """The categories of a column, in the layout of anndata 0.7."""
    with h5py.File(path, "r+") as file:
        (path.parent / "secret").write_bytes(b"G1G2G3G4")
        names = file.create_dataset("apart", (4,), "S2", external=[(str(path.parent / "secret"), 0, 8)])
        del file["obs/condition"]
        file["obs/condition"] = np.zeros(48, np.int8)
        file["obs/condition"].attrs["categories"] = names.ref
        file["obs"].attrs["encoding-version"] = "0.1.0"


def soft_links_in_a_circle(path):
    with h5py.File(path, "r+") as file:
        del file["X"]
        file["X"], file["Y"] = h5py.SoftLink("/Y"), h5py.SoftLink("/X")


SPOILT = [
    *(external_link(name) for name in ("X", "X/data", "obs", "obs/line", "var")),
    soft_link_to_an_external_one,
    external_storage,
    virtual,
    reference_to_external_storage,
]


@pytest.mark.parametrize("spoil", SPOILT)
def test_data_in_another_file_are_refused(screen, expect, spoil, refused, tmp_path):
    expect(screen, "lie in another file", "write one whole file", spoil=spoil)
    assert "lie in another file" in refused(read_adata, str(tmp_path / "screen0.h5ad"), "--controls")


def test_links_in_a_circle(screen, expect):
    expect(screen, "another file", spoil=soft_links_in_a_circle)


def test_links_inside_the_file_are_read(screen, write_spec, stored, tmp_path):
    """Also a group that holds itself, and links of parts that are not used."""
    expected, _ = stored(write_spec(screen))
    spec = write_spec(screen)
    with h5py.File(tmp_path / "screen0.h5ad", "r+") as file:
        file.move("X", "matrix")
        file["X"] = h5py.SoftLink("/matrix")
        file["obs/again"] = file["uns"]
        file["uns/round"] = file["uns"]
        file["unused"] = h5py.ExternalLink("none.h5", "/")
        del file["obs/again"]
    table, _ = stored(spec, "linked")
    pd.testing.assert_frame_equal(table, expected)


def test_a_filter_that_is_not_installed(screen, expect, refused, tmp_path):
    def spoil(path):
        with h5py.File(path, "r+") as file:
            n = len(file["X/data"])
            del file["X/data"]
            settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            settings.set_chunk((n,))
            settings.set_filter(32999, h5py.h5z.FLAG_OPTIONAL, (3,))  # registered by nobody
            space = h5py.h5s.create_simple((n,))
            data = h5py.h5d.create(file["X"].id, b"data", h5py.h5t.IEEE_F32LE, space, settings)
            data.write_direct_chunk((0,), b"\x28\xb5\x2f\xfd" + b"\0" * 40)

    sentence = expect(screen, "filter that is not installed", "32999", "pip install hdf5plugin", spoil=spoil)
    assert "damaged" not in sentence
    assert "hdf5plugin" in refused(read_adata, str(tmp_path / "screen0.h5ad"), "--controls")


def test_whole_files_are_read_in_any_form(screen, tmp_path, refused):
    screen.write_h5ad(tmp_path / "a.h5ad")
    write_zarr(screen, tmp_path / "a.zarr")
    for name in ("a.h5ad", "a.zarr"):
        found = read_adata(str(tmp_path / name), "--controls")
        np.testing.assert_array_equal(found.X.toarray(), screen.X.toarray())
    assert "no such file" in refused(read_adata, str(tmp_path / "b.h5ad"), "--controls")
    (tmp_path / "b.h5ad").write_text("no")
    assert "not an .h5ad" in refused(read_adata, str(tmp_path / "b.h5ad"), "--controls")
    Path(tmp_path / "b.zarr").mkdir()
    assert "not a zarr store" in refused(read_adata, str(tmp_path / "b.zarr"), "--controls")


def test_rows_of_a_zarr_folder_are_read_in_parts(screen, write_spec, tmp_path):
    """Rows of a part of the file, without the whole matrix in memory."""
    spec = write_spec(screen)
    write_zarr(screen, tmp_path / "screen0.zarr")
    spec.write_text(spec.read_text().replace("screen0.h5ad", "screen0.zarr"))
    with open_source(load_spec(spec).datasets[0]) as source:
        assert not isinstance(source._matrix, sparse.csr_matrix)
        np.testing.assert_array_equal(source.rows(5, 9).toarray(), screen.X.toarray()[5:9])
