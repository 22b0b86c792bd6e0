"""Control cells that are kept with a run: they come back, or are refused before they are used."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tadvae.cells.ragged import Cells
from tadvae.model.controls import check_controls, pack_controls, unpack_controls
from tadvae.model.run_folder import RunFolder


def controls(genes=(0, 3, 5)):
    return {0: Cells(np.array(genes), np.ones(3, np.float32), np.array([0, 1, 3]), np.array([10.0, 20.0]))}


def table():
    return pq.read_table(pa.BufferReader(pack_controls(controls())))


def test_round_trip(small_vocabulary):
    found = unpack_controls(table())
    check_controls(found, small_vocabulary, "run")
    np.testing.assert_array_equal(found[0].dense(np.arange(12)), controls()[0].dense(np.arange(12)))


LISTS = pa.list_(pa.float32())
SPOILT = {
    "more genes than values": ("values", pa.array([[1.0], [1.0]], LISTS)),
    "fewer genes than values": ("values", pa.array([[1.0], [1.0, 1.0, 1.0]], LISTS)),
    "lists that add up": ("values", pa.array([[1.0, 1.0], [1.0]], LISTS)),
    "a missing cell": ("values", pa.array([None, [1.0, 1.0]], LISTS)),
    "a missing value": ("values", pa.array([[None], [1.0, 1.0]], LISTS)),
    "not finite": ("values", pa.array([[np.nan], [1.0, 1.0]], LISTS)),
    "another type": ("gene_ids", pa.array([[1], [1, 2]], pa.list_(pa.int64()))),
    "no lists": ("gene_ids", pa.array([1, 2], pa.int32())),
    "negative totals": ("total_counts", pa.array([-1.0, 2.0])),
    "totals that are no numbers": ("total_counts", pa.array([np.nan, 2.0])),
}


@pytest.mark.parametrize(("column", "values"), SPOILT.values(), ids=SPOILT)
def test_cells_that_do_not_fit_together(tmp_path, refused, column, values):
    good = table()
    spoilt = good.set_column(good.column_names.index(column), column, values)
    pq.write_table(spoilt, tmp_path / "controls.parquet")
    assert "controls.parquet" in refused(RunFolder(tmp_path).controls)


@pytest.mark.parametrize("cut", [0, 10, -10])
def test_a_file_that_was_cut(tmp_path, refused, cut):
    (tmp_path / "controls.parquet").write_bytes(pack_controls(controls())[:cut])
    assert "controls.parquet" in refused(RunFolder(tmp_path).controls)


@pytest.mark.parametrize("genes", [(0, 3, 7 * 10**8), (-1, 3, 5), (0, 3, 8)])
def test_genes_that_the_dataset_lacks(small_vocabulary, refused, genes):
    assert "context 0" in refused(check_controls, controls(genes), small_vocabulary, "run")


@pytest.mark.parametrize("row", [-1, 3])
def test_contexts_that_the_model_lacks(small_vocabulary, refused, row):
    assert f"context {row}" in refused(check_controls, {row: controls()[0]}, small_vocabulary, "run")
