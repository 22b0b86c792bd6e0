"""Stores that were changed by someone who made their checksums anew: what they say contradicts itself."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tadvae.base.checksums import SUMS
from tadvae.data.decode import DatasetView
from tadvae.data.reader import CellReader, verify_shards
from tadvae.data.splits import SplitConfig
from tadvae.store.reader import Store


@pytest.fixture
def copy(store, tmp_path):
    """A copy of the store, whose own checksums are not asked."""
    shutil.copytree(str(store.folder), tmp_path / "copy")
    (tmp_path / "copy" / SUMS).unlink()
    return tmp_path / "copy"


def change_manifest(folder, change):
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def change_shard(folder, change, shard=0):
    """Rewrite a shard, row group by row group, and make size and checksum in the manifest anew."""
    entry = json.loads((folder / "manifest.json").read_text())["shards"][shard]
    path = folder / entry["path"]
    file = pq.ParquetFile(path)
    groups = [change(file.read_row_group(i)) for i in range(file.num_row_groups)]
    with pq.ParquetWriter(path, groups[0].schema, write_page_checksum=True) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=len(group))
    renew(folder, shard)


def renew(folder, shard):
    def change(data):
        entry = data["shards"][shard]
        content = (folder / entry["path"]).read_bytes()
        entry.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())

    change_manifest(folder, change)


def change_table(folder, name, change):
    path = folder / f"{name}.parquet"
    table = pd.read_parquet(path)
    change(table)
    pq.write_table(pa.Table.from_pandas(table, preserve_index=False), path)


def with_column(name, values, kind=None):
    """A change of a row group: other values in a column, from the old ones."""

    def change(table):
        at, field = table.schema.get_field_index(name), table.schema.field(name)
        new = pa.array(values(table[name].to_numpy(zero_copy_only=False).copy()), kind or field.type)
        return table.set_column(at, field.with_type(new.type).with_nullable(True), new)

    return change


def read_all(folder):
    store = Store.open(str(folder))
    every = DatasetView(np.arange(store.manifest.n_genes), "cp10k")
    reader = CellReader(store, [every] * len(store.manifest.datasets), SplitConfig())
    for read in store.row_groups(store.bags):
        reader.read(*read)


def verify(folder):
    """What ``tadvae inspect --verify`` does."""
    store = Store.open(str(folder))
    store.verify_tables()
    for shard in range(len(store.manifest.shards)):
        store.verify(shard, tokens=True)


def put(at, value):
    def values(column):
        column[at] = value
        return column

    return values


LARGE = b"\xff\xff\xff\xff\x02"  # as LEB128


def moved(column):
    """One token less in a cell, one more in the next."""
    column[:2] += np.array([1, -1], column.dtype)
    return column


TOKENS = {
    "negative": with_column("n_tokens", put(0, -5)),
    "huge": with_column("n_tokens", put(0, 2**31 - 1)),
    "that add up": with_column("n_tokens", moved),
    "64 bits": with_column("n_tokens", lambda n: n, pa.int64()),
    "missing": with_column("n_tokens", lambda n: [None, *n[1:].tolist()]),
    "negative totals": with_column("total_counts", put(1, -1.0)),
    "NaN totals": with_column("total_counts", put(1, np.nan)),
    "infinite totals": with_column("total_counts", put(1, np.inf)),
    "a gene beyond the vocabulary": with_column("gene_ids", lambda b: [LARGE + x[1:] for x in b]),
    "a truncated cell": with_column("gene_ids", lambda b: [x[:-1] for x in b]),
    "large binary": with_column("gene_ids", lambda b: b, pa.large_binary()),
    "a missing cell": with_column("counts", lambda b: [None, *b[1:]]),
    "no column": lambda table: table.drop_columns(["counts"]),
    "fewer cells": lambda table: table.slice(0, len(table) - 1),
}  # fmt: skip


@pytest.mark.parametrize("change", TOKENS.values(), ids=TOKENS)
def test_cells_that_are_not_what_they_say(copy, refused, change):
    """Refused before a compiled loop reads beyond an array."""
    change_shard(copy, change)
    sentence = refused(read_all, copy)
    assert "part-00000.parquet" in sentence
    assert "convert the store again" in sentence
    refused(verify, copy)


BAGS = {
    "negative cells": lambda t: t.__setitem__("n_cells", -t["n_cells"]),
    "a shard too many": lambda t: t.__setitem__("shard", t["shard"] + 1),
    "another row": lambda t: t.__setitem__("first_row", t["first_row"] + 1),
    "other tokens": lambda t: t.__setitem__("n_tokens", t["n_tokens"][::-1].to_numpy()),
    "no number": lambda t: t.__setitem__("row_group", t["row_group"] + 0.5),
    "an unknown perturbation": lambda t: t.__setitem__("perturbation", 999),
    "a dataset that is not that of the shard": lambda t: t.__setitem__("dataset", 1 - t["dataset"]),
    "no column": lambda t: t.drop(columns="first_row", inplace=True),
    "no context": lambda t: t.__setitem__("context", [None, *t["context"][1:]]),
}


@pytest.mark.parametrize("change", BAGS.values(), ids=BAGS)
def test_bags_that_contradict_the_manifest(copy, refused, change):
    change_table(copy, "bags", change)
    assert "bags.parquet" in refused(read_all, copy)


@pytest.mark.parametrize("column", ["context", "perturbation"])
def test_labels_that_contradict_the_bags(copy, refused, column):
    """Two bags of one size change their labels: all sums stay."""

    def change(bags):
        same = bags[bags["dataset"] == 1]
        first = same.index[0]
        other = same.index[(same[column] != same[column][first])][0]
        bags.loc[[first, other], column] = bags.loc[[other, first], column].to_numpy()

    change_table(copy, "bags", change)
    store = Store.open(str(copy))
    sentence = refused(verify_shards, store, store.bags)
    assert f"{column} is not what bags.parquet says" in sentence
    refused(verify, copy)


def test_swapped_shards_are_noticed_by_their_cells(convert_here, write_spec, screen, refused):
    """Of one size and with checksums made anew, and read by whoever does not verify."""
    layout = {"bag_size": 6, "row_group_rows": 12, "shard_rows": 24}
    folder = convert_here(write_spec(screen, layout=layout)).folder.path
    store = Store.open(folder)
    (store.folder / SUMS).delete()
    first, other = (store.folder / store.manifest.shards[i].path for i in (0, 1))
    content = first.read_bytes()
    first.write_bytes(other.read_bytes())
    other.write_bytes(content)
    for shard in (0, 1):
        renew(Path(folder), shard)
    assert "part-0000" in refused(read_all, folder)
    refused(verify, folder)


OTHERS = {
    "genes that repeat": ("genes", lambda t: t.__setitem__("gene_index", 0)),
    "targets beyond the vocabulary": (
        "perturbations",
        lambda t: t.__setitem__("target_genes", [[9**6] * len(x) for x in t["target_genes"]]),
    ),
    "lists of unequal length": ("perturbations", lambda t: t.__setitem__("signs", [[1, 1, 1]] * len(t))),
    "a panel out of range": ("datasets/up", lambda t: t.__setitem__("gene_index", t["gene_index"] + 100)),
    "moments that are NaN": ("datasets/up", lambda t: t.__setitem__("mean", np.nan)),
    "another panel": ("datasets/up", lambda t: t.__setitem__("gene", t["gene"][::-1].to_numpy())),
}


@pytest.mark.parametrize(("name", "change"), OTHERS.values(), ids=OTHERS)
def test_tables_that_contradict_each_other(copy, refused, name, change):
    change_table(copy, name, change)
    assert f"{name}.parquet" in refused(verify, copy)


def test_counts_of_perturbations_that_are_not_the_bags(copy, refused):
    def change(table):
        table["n_cells"] = [[part | {"n_cells": 1} for part in parts] for parts in table["n_cells"]]

    change_table(copy, "perturbations", change)
    assert "n_cells is not what the bags hold" in refused(verify, copy)


PATHS = [
    "../victim.parquet",
    "/etc/passwd",
    "cells/dataset=up/../../../victim",
    "cells/dataset=down/part-00000.parquet",
    "cells/dataset=up/part-00000.parquet\n",
    "",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_shard_lies_in_its_store(copy, refused, path):
    change_manifest(copy, lambda data: data["shards"][0].update(path=path))
    sentence = refused(Store.open, str(copy))
    assert "manifest.json" in sentence
    assert "which is nothing inside of" in sentence


@pytest.mark.parametrize("name", ["../../victim", "/etc/passwd", "", "..", "a/b"])
def test_a_panel_lies_in_its_store(copy, refused, name):
    change_manifest(copy, lambda data: data["datasets"][0].update(name=name))
    assert "damaged manifest" in refused(Store.open, str(copy))


def test_a_link_does_not_lead_out_of_a_store(copy, refused, store):
    path = copy / store.manifest.shards[0].path
    path.rename(copy.parent / "outside.parquet")
    path.symlink_to(copy.parent / "outside.parquet")
    assert "a symbolic link leads out of it" in refused(Store.open, str(copy))


MANIFESTS = {
    "negative cells": lambda data: data["shards"][0].update(rows=-1),
    "cells that do not add up": lambda data: data.update(n_cells=1),
    "a dataset that is not there": lambda data: data["shards"][0].update(dataset=2),
    "an unknown kind": lambda data: data["datasets"][0].update(kind="images"),
    "two datasets of one name": lambda data: data["datasets"][0].update(name="down"),
    "an unknown context": lambda data: data["datasets"][0].update(contexts=["X"]),
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_that_contradicts_itself(copy, refused, change):
    change_manifest(copy, change)
    assert "damaged manifest" in refused(Store.open, str(copy))
