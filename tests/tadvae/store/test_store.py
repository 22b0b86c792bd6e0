"""The store: what is written is what was read, and a store that is not whole is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tadvae.base.errors import UserError
from tadvae.data.decode import DatasetView
from tadvae.data.reader import CellReader
from tadvae.data.splits import SplitConfig
from tadvae.store.manifest import SCHEMA_VERSION, Manifest, vocabulary_hash
from tadvae.store.reader import Store

COLUMNS = ["cell_id", "context", "perturbation", "batch", "total_counts", "n_tokens", "gene_ids", "counts"]


@pytest.fixture
def copy(store, tmp_path):
    """A copy of the store, to spoil."""
    shutil.copytree(str(store.folder), tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("d", [0, 1])
def test_every_cell_is_stored_as_it_was(store, simulated, stored_cells, d):
    adata = simulated.simulation.screens[d]
    cells, values = stored_cells(store, d)
    panel = store.panel(d)
    assert sorted(cells["cell_id"]) == sorted(adata.obs_names)
    source = adata[cells["cell_id"].tolist()]
    for column, of_source in [("context", "cell_type"), ("batch", "batch"), ("perturbation", "condition")]:
        np.testing.assert_array_equal(cells[column], source.obs[of_source].astype(str))
    np.testing.assert_array_equal(
        values[:, panel["gene_index"]].toarray(), source[:, panel["source"].tolist()].X.toarray()
    )
    assert values.sum() == adata.X.sum()
    np.testing.assert_array_equal(cells["total_counts"], np.asarray(source.X.sum(axis=1)).ravel())
    assert set(values.indices) <= set(panel["gene_index"])
    assert (values.data > 0).all()
    np.testing.assert_array_equal(cells["n_tokens"], np.diff(values.indptr))
    assert values.has_sorted_indices


def test_tables(store, simulated):
    manifest, truth = store.manifest, simulated.simulation.truth
    assert manifest.schema_version == SCHEMA_VERSION
    assert store.genes["gene"].is_monotonic_increasing
    assert store.genes["gene_index"].tolist() == list(range(manifest.n_genes))
    assert manifest.vocabulary_hash == vocabulary_hash(store.genes["gene"])
    assert manifest.contexts == sorted(truth.contexts)
    assert [entry.source for entry in manifest.datasets] == ["up.h5ad", "down.h5ad"]
    assert [entry.n_cells for entry in manifest.datasets] == [len(a) for a in simulated.simulation.screens]
    for d, (entry, adata) in enumerate(zip(manifest.datasets, simulated.simulation.screens, strict=True)):
        panel = store.panel(d)
        assert sorted(panel["source"]) == sorted(adata.var_names)
        assert panel["gene_index"].is_monotonic_increasing
        assert store.genes["gene"].to_numpy()[panel["gene_index"]].tolist() == panel["gene"].tolist()
        assert entry.n_genes == len(panel)
        assert entry.n_perturbations == adata.obs["condition"].nunique() - 1

    table = store.perturbations
    assert table["perturbation_index"].tolist() == list(range(len(table)))
    assert store.control == table.index[table["name"] == "control"][0]
    signs = {"CRISPRa": 1, "CRISPRi": -1}
    for row in table.itertuples():
        assert row.name == ("+".join(row.targets) or "control")
        assert [signs[modality] for modality in row.modalities] == list(row.signs)
        assert store.genes["gene"].to_numpy()[row.target_genes].tolist() == list(row.targets)
    found = {
        (manifest.datasets[part["dataset"]].name, manifest.contexts[part["context"]], row.name): part[
            "n_cells"
        ]
        for row in table.itertuples()
        for part in row.n_cells
    }
    expected = {}
    for entry, adata in zip(manifest.datasets, simulated.simulation.screens, strict=True):
        sizes = adata.obs.groupby(["cell_type", "condition"], observed=True).size()
        expected |= {(entry.name, *key): n for key, n in sizes.items()}
    assert found == expected


def test_bags_say_where_cells_are(store):
    bags = store.bags
    assert bags["n_cells"].max() <= store.manifest.bag_size
    for s, entry in enumerate(store.manifest.shards):
        file = pq.ParquetFile(f"{store.folder}/{entry.path}")
        of_shard = bags[bags["shard"] == s]
        assert entry.rows == of_shard["n_cells"].sum() == file.metadata.num_rows
        assert entry.tokens == of_shard["n_tokens"].sum()
        assert (of_shard["dataset"] == entry.dataset).all()
        assert file.metadata.num_row_groups == of_shard["row_group"].nunique()
        for group, rows in of_shard.groupby("row_group"):
            table = file.read_row_group(group)
            assert table.num_rows == rows["n_cells"].sum()
            for bag in rows.itertuples():
                cells = table.slice(bag.first_row, bag.n_cells)
                (context,), (perturbation,) = (set(cells[name].to_pylist()) for name in COLUMNS[1:3])
                assert context == store.manifest.contexts[bag.context]
                assert perturbation == store.perturbations["name"][bag.perturbation]
                assert sum(cells["n_tokens"].to_pylist()) == bag.n_tokens


def test_read_bags(store):
    for shard, group, ids in store.row_groups(store.bags):
        whole, bag_of_row = store.read_bags(shard, group, ids, COLUMNS)
        np.testing.assert_array_equal(np.repeat(ids, store.bags.loc[ids, "n_cells"]), bag_of_row)
        some = np.random.default_rng(group).permutation(ids)[: max(len(ids) // 2, 1)]
        part, bag_of_part = store.read_bags(shard, group, some, COLUMNS)
        keep = np.isin(bag_of_row, some)
        np.testing.assert_array_equal(bag_of_part, bag_of_row[keep])
        assert part.equals(whole.filter(pa.array(keep)))


def test_encodings(store):
    metadata = pq.ParquetFile(f"{store.folder}/{store.manifest.shards[0].path}").metadata.row_group(0)
    columns = {metadata.column(i).path_in_schema: metadata.column(i) for i in range(metadata.num_columns)}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    kinds = {name: column.physical_type for name, column in columns.items()}
    assert kinds["gene_ids"] == kinds["counts"] == "BYTE_ARRAY"


@pytest.mark.parametrize("largest", [65_535, 65_536, 2**24])
def test_large_counts_stay_exact(convert_here, write_spec, screen, stored_cells, largest):
    X = screen.X.toarray()
    X[30, 5] = largest
    screen.X = X
    store = convert_here(write_spec(screen, layout={"chunk_rows": 10}))
    shard = pq.read_table(f"{store.folder}/{store.manifest.shards[0].path}", partitioning=None)
    assert shard.schema.field("counts").metadata[b"encoding"] == b"varint"
    cells, values = stored_cells(store, 0)
    X = screen.to_df().loc[cells["cell_id"], store.panel(0)["source"]]
    np.testing.assert_array_equal(values[:, store.panel(0)["gene_index"]].toarray(), X)


layouts = st.fixed_dictionaries(
    {"bag_size": st.integers(1, 20), "row_group_rows": st.integers(1, 30), "shard_rows": st.integers(1, 60)}
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layouts, st.integers(3, 50), st.integers(3, 50))
@pytest.mark.slow
def test_chunks_do_not_change_the_store(convert_here, write_spec, screen, layout, chunk, other_chunk):
    stores = []
    for rows in (chunk, other_chunk):
        store = convert_here(write_spec(screen, layout={**layout, "chunk_rows": rows}), f"store{len(stores)}")
        stores.append(store)
    one, other = stores
    assert one.manifest == other.manifest  # also the sha256 of every shard
    assert one.bags.equals(other.bags)
    assert one.perturbations.equals(other.perturbations)
    pd.testing.assert_frame_equal(one.panel(0), other.panel(0), rtol=1e-12)
    for shard in range(len(one.manifest.shards)):
        one.verify(shard)
    shutil.rmtree(str(one.folder))
    shutil.rmtree(str(other.folder))


def test_profiles(convert_here, write_spec, screen, stored_cells):
    profiles = screen[:8].copy()
    profiles.obs["condition"] = ["control", *(f"G{i}" for i in range(1, 8))]
    profiles.X = np.log1p(profiles.X.toarray() / 3)
    store = convert_here(write_spec(profiles, kind="profiles", values="log1p"))
    (entry,) = store.manifest.datasets
    assert (entry.kind, entry.values, len(store.bags)) == ("profiles", "log1p", 8)
    cells, values = stored_cells(store, 0)
    source = profiles[cells["cell_id"].tolist(), store.panel(0)["source"]]
    np.testing.assert_array_equal(values[:, store.panel(0)["gene_index"]].toarray(), source.X)
    linear = np.expm1(source.X.astype(np.float64))
    np.testing.assert_allclose(store.panel(0)["mean"], linear.mean(axis=0))


def test_the_given_library_size(convert_here, write_spec, screen):
    store = convert_here(write_spec(screen, total_counts="depth", perturbation=None, batch="lane"))
    table = pq.read_table(f"{store.folder}/{store.manifest.shards[0].path}", partitioning=None).to_pandas()
    table = table.set_index("cell_id").loc[screen.obs_names]
    np.testing.assert_array_equal(table["total_counts"], screen.obs["depth"])
    np.testing.assert_array_equal(table["batch"], screen.obs["lane"])
    assert set(table["perturbation"]) == {"control"}
    X = screen.X.toarray() / screen.obs["depth"].to_numpy()[:, None] * 1e4
    panel = store.panel(0).set_index("source").loc[screen.var_names]
    np.testing.assert_allclose(panel["mean"], X.mean(axis=0), rtol=1e-6)


def test_a_target_has_one_name_in_all_datasets(convert_here, write_spec, screen):
    """MLL is an old name of KMT2A; neither panel measures it, nor LPS, which is no gene."""
    symbols = ["TP53", "KLF1", "CEBPE", "GATA1", "SPI1", "RUNX1", "MYC", "JUN", "FOS", "TET2"]
    screen.var_names = symbols
    other = screen.copy()
    screen.obs["condition"] = np.tile(["control", "MLL", "KLF1", "KLF1+MLL"], 12)
    other.obs["condition"] = np.tile(["control", "KMT2A", "LPS", "KMT2A+LPS"], 12)
    modality = {"default": "CRISPRi", "MLL": "CRISPRa", "LPS": "ligand"}
    store = convert_here(write_spec(screen, other, reference="human", modality=modality))
    table = store.perturbations.set_index("name")
    assert sorted(table.index) == ["KLF1", "KLF1+KMT2A", "KMT2A", "KMT2A+LPS", "LPS", "control"]
    assert list(table.loc["KMT2A+LPS", "modalities"]) == ["CRISPRa", "ligand"]
    assert list(table.loc["KLF1+KMT2A", "signs"]) == [-1, 1]
    assert {part["dataset"] for part in table.loc["KMT2A", "n_cells"]} == {0, 1}
    (target,) = table.loc["KMT2A", "target_genes"]
    assert store.genes["symbol"][target] == "KMT2A"
    assert list(table.loc["LPS", "target_genes"]) == [-1]
    for d in range(2):
        assert target not in set(store.panel(d)["gene_index"])


def spoil_manifest(folder, **changes):
    data = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(data | changes))


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1])
def test_another_schema_version(refused, copy, version):
    spoil_manifest(copy, schema_version=version, something_new=[])
    sentence = refused(Store.open, str(copy))
    for word in (str(copy), f"version {version}", f"version {SCHEMA_VERSION}", "tadvae convert"):
        assert word in sentence


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema_version": "x"}', '{"schema_version": 2}'])
def test_a_damaged_manifest(refused, copy, text):
    (copy / "manifest.json").write_text(text)
    sentence = refused(Store.open, str(copy))
    assert str(copy / "manifest.json") in sentence
    assert "convert the store again" in sentence


def test_a_manifest_that_is_no_text(refused, copy):
    (copy / "manifest.json").write_bytes(b"\xff\xfe\x00")
    assert "convert the store again" in refused(Store.open, str(copy))


def test_not_a_store(refused, tmp_path):
    for place in (tmp_path, tmp_path / "none"):
        sentence = refused(Store.open, str(place))
        assert str(place) in sentence
        assert "tadvae convert" in sentence


def test_a_missing_shard(refused, copy, store):
    path = store.manifest.shards[1].path
    (copy / path).unlink()
    sentence = refused(Store.open, str(copy))
    for word in (str(copy), path, "is missing", "convert the store again"):
        assert word in sentence


def test_a_truncated_shard(refused, copy, store):
    entry = store.manifest.shards[0]
    (copy / entry.path).write_bytes((copy / entry.path).read_bytes()[:-10])
    sentence = refused(Store.open, str(copy))
    for word in (str(copy), entry.path, f"{entry.size - 10:,} bytes instead of {entry.size:,}"):
        assert word in sentence


def test_genes_of_another_store(refused, copy):
    genes = pd.read_parquet(copy / "genes.parquet")
    genes.loc[0, "gene"] = "OTHER"
    genes.to_parquet(copy / "genes.parquet")
    assert "genes.parquet does not belong" in refused(Store.open, str(copy))


@pytest.mark.parametrize("name", ["bags", "perturbations", "datasets/up"])
def test_a_damaged_table(refused, copy, name):
    path = copy / f"{name}.parquet"
    for spoilt in (b"nothing", None):
        path.unlink() if spoilt is None else path.write_bytes(spoilt)
        store = Store.open(str(copy))
        sentence = refused(lambda s=store: (s.bags, s.perturbations, s.panel(0)))
        assert str(path) in sentence
        assert "convert the store again" in sentence


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def test_a_checksum_that_fails(refused, copy, store):
    entry = store.manifest.shards[1]
    flip(copy / entry.path, entry.size // 2)
    spoilt = Store.open(str(copy))
    spoilt.verify(0)
    sentence = refused(spoilt.verify, 1)
    for word in (str(copy), entry.path, "checksum", "convert the store again"):
        assert word in sentence


def test_no_flipped_bit_is_read_as_a_value(copy, store):
    """Wherever a bit flips, reading says so, or reads what was written."""
    entry = store.manifest.shards[0]
    path, original = copy / entry.path, (copy / entry.path).read_bytes()
    groups = [group for group in store.row_groups(store.bags) if group[0] == 0]
    expected = [store.read_bags(*group, COLUMNS)[0] for group in groups]
    refused = 0
    for at in range(0, entry.size, entry.size // 150):
        path.write_bytes(original)
        flip(path, at)
        spoilt = Store.open(str(copy))
        for group, table in zip(groups, expected, strict=True):
            try:
                found = spoilt.read_bags(*group, COLUMNS)[0]
            except UserError:
                refused += 1
            else:
                assert found.equals(table), f"byte {at}"
    assert refused >= 100


def test_tokens_that_are_not_what_the_row_says(refused, copy):
    """Written so, hence with checksums that agree; the sentence names the place."""
    store = Store.open(str(copy))
    entry = store.manifest.shards[0]
    table = pq.read_table(copy / entry.path)
    ids = table["gene_ids"].to_pylist()
    spoilt = pa.array([ids[0][:-1], *ids[1:]], pa.binary())
    table = table.set_column(table.schema.get_field_index("gene_ids"), table.schema.field("gene_ids"), spoilt)
    pq.write_table(table, copy / entry.path)
    every = DatasetView(np.arange(store.manifest.n_genes), "none")
    reader = CellReader(store, [every] * 2, SplitConfig())
    of_shard = store.bags[store.bags["shard"] == 0]
    sentence = refused(reader.read, 0, 0, of_shard.index[of_shard["row_group"] == 0].to_numpy())
    for word in (str(copy), entry.path, "row group 0", "column gene_ids", "convert the store again"):
        assert word in sentence


def test_a_manifest_round_trip(store, copy):
    assert Manifest.read(Store.open(str(copy)).folder) == store.manifest
