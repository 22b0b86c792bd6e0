"""Conversion: the same store however it runs, whole or absent, and continued after a stop.

Tests without ``ray_cluster`` convert in this process, as every small conversion without a cluster.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from pyarrow import fs as pafs

import pipelines.convert as module
from pipelines.convert import convert
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.store.reader import Store

LAYOUT = {"chunk_rows": 8, "shard_rows": 16, "row_group_rows": 8, "bag_size": 4}


def content(folder):
    """Every file of a folder, as bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


@pytest.fixture
def out(tmp_path):
    """Where the store goes; nothing else is in its folder."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "store"


@pytest.fixture
def calls(monkeypatch):
    """What :func:`convert` has run as tasks: {what: number of calls}."""
    found = {}
    run = module.run_tasks

    def record(what, calls, at_once):
        found[what] = len(calls)
        return run(what, calls, at_once)

    monkeypatch.setattr(module, "run_tasks", record)
    return found


@pytest.fixture
def interrupt(monkeypatch, out):
    """Convert, and fail when all cells but not the tables are written."""

    def interrupt(spec, place=None):
        def power_cut(*arguments):
            raise RuntimeError("power cut")

        with monkeypatch.context() as patch:
            patch.setattr(module, "finish_store", power_cut)
            with pytest.raises(RuntimeError, match="power cut"):
                convert(str(spec), place or str(out))

    return interrupt


@pytest.fixture
def partial(out):
    return out.with_name("store.partial")


@pytest.mark.parametrize("how", ["here", pytest.param("on Ray", marks=pytest.mark.ray)])
def test_the_same_store_however_it_is_made(write_spec, screen, convert_here, out, calls, request, how):
    if how == "on Ray":
        request.getfixturevalue("ray_cluster")
    spec = write_spec(screen, screen, layout=LAYOUT, batch="lane", total_counts="depth")
    manifest = convert(str(spec), str(out))
    assert manifest == Store.open(str(out)).manifest
    assert content(out) == content(str(convert_here(spec).folder))
    assert calls == {"reading cells": 12, "writing shards": len(manifest.shards)}
    assert len(manifest.shards) >= 6
    assert os.listdir(out.parent) == ["store"]


@pytest.mark.parametrize("at_once", [1, 3])
def test_the_number_of_tasks_at_once_changes_nothing(ray_cluster, write_spec, screen, out, at_once):
    spec = write_spec(screen, layout=LAYOUT)
    convert(str(spec), str(out))
    convert(str(spec), str(out.with_name("other")), tasks_at_once=at_once)
    assert content(out) == content(out.with_name("other"))


def test_chunks_do_not_change_the_shards(write_spec, screen, out):
    sums = set()
    for rows in (5, 48, 1000):
        manifest = convert(str(write_spec(screen, layout={**LAYOUT, "chunk_rows": rows})), f"{out}{rows}")
        sums.add(tuple(shard.sha256 for shard in manifest.shards))
    assert len(sums) == 1


def test_a_conversion_goes_on_where_it_was(
    ray_cluster, write_spec, screen, convert_here, out, partial, interrupt, calls, monkeypatch
):
    spec = write_spec(screen, screen, layout=LAYOUT)
    interrupt(spec)
    assert not out.exists()
    chunks = sorted((partial / "spill").rglob("*.npz"))
    assert len(chunks) == 12
    for chunk in chunks[3:5]:
        chunk.unlink()
    chunks[7].with_suffix(".arrow").with_name("chunk-00001.arrow.12345678.tmp").touch()
    (partial / "cells/dataset=screen0/part-00000.parquet.12345678.tmp").touch()
    before = {chunk: chunk.stat().st_mtime_ns for chunk in chunks[:3] + chunks[5:]}
    after, publish = {}, module._publish

    def look_and_publish(*arguments):
        after.update({chunk: chunk.stat().st_mtime_ns for chunk in before})
        publish(*arguments)

    monkeypatch.setattr(module, "_publish", look_and_publish)
    convert(str(spec), str(out))
    assert after == before
    assert calls["reading cells"] == 2
    assert content(out) == content(str(convert_here(spec).folder))
    assert os.listdir(out.parent) == ["store"]


def change_nothing(spec):
    pass


def change_the_spec(spec):
    spec.write_text(spec.read_text().replace("seed: 0", "seed: 5"))


def change_the_file(spec):
    path = spec.parent / "screen0.h5ad"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1_000_000_000))


def change_the_gene_table(spec):
    table = spec.parent / "genes.tsv"
    table.write_text(table.read_text() + "OTHER\tENSG00000000099\n")


@pytest.mark.parametrize(
    ("change", "redone"),
    [(change_nothing, 0), (change_the_spec, 6), (change_the_file, 6), (change_the_gene_table, 6)],
)
def test_another_input_starts_over(
    write_spec, screen, convert_here, out, interrupt, calls, tmp_path, change, redone
):
    genes = "".join(f"G{i}\tENSG0000000001{i % 10}\n" for i in range(1, 11))
    (tmp_path / "genes.tsv").write_text("symbol\tensembl_id\n" + genes)
    spec = write_spec(screen, layout={**LAYOUT, "seed": 0}, reference="genes.tsv")
    interrupt(spec)
    change(spec)
    convert(str(spec), str(out))
    assert calls["reading cells"] == redone
    assert content(out) == content(str(convert_here(spec).folder))


def test_a_killed_conversion(ray_cluster, write_spec, screen, convert_here, out, partial, calls, monkeypatch):
    """SIGKILL in the middle: no store, and the next conversion goes on with the finished chunks."""
    spec = write_spec(screen, layout={**LAYOUT, "chunk_rows": 1})
    program = "import sys, pipelines.convert as m; m.convert(sys.argv[1], sys.argv[2], tasks_at_once=1)"
    address = ray_cluster.get_runtime_context().gcs_address
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(spec), str(out)],
        env={**os.environ, "RAY_ADDRESS": address},
        stderr=subprocess.DEVNULL,
    )
    try:
        while len(list(partial.rglob("*.npz"))) < 3:
            assert process.poll() is None, "it ended before it could be killed"
            assert not out.exists()
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not out.exists()
    time.sleep(0.5)  # the task that was running may still end
    finished = {chunk: chunk.stat().st_mtime_ns for chunk in partial.rglob("*.npz")}
    assert 3 <= len(finished) < 48

    seen, stop, after, publish = [], threading.Event(), {}, module._publish

    def watch():
        while not stop.wait(0.002):
            if out.exists():
                seen.append(Store.open(str(out)).manifest)  # raises where it is not whole

    def look_and_publish(*arguments):
        after.update({chunk: chunk.stat().st_mtime_ns for chunk in finished})
        publish(*arguments)

    monkeypatch.setattr(module, "_publish", look_and_publish)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        manifest = convert(str(spec), str(out))
        while not seen and watcher.is_alive():
            time.sleep(0.01)
    finally:
        stop.set()
        watcher.join()
    assert seen[0] == manifest
    assert after == finished
    assert calls["reading cells"] == 48 - len(finished)
    assert content(out) == content(str(convert_here(spec).folder))


@pytest.mark.parametrize("row", [0, 20, 47])
def test_bad_input_among_many_tasks(ray_cluster, not_converted, write_spec, screen, row):
    """Tasks that run on must neither bring the folder back nor end the driver."""
    X = screen.X.toarray()
    X[row, 0] = -1
    screen.X = X
    assert f"'cell{row:02d}'" in not_converted(write_spec(screen, screen, layout={"chunk_rows": 1}))


def test_the_folder_goes_while_it_is_written(write_spec, screen, out, partial, refused, monkeypatch):
    """Removed by somebody in the middle of the chunks: one sentence, and the same command works."""
    spec = write_spec(screen, layout=LAYOUT)
    spill, done = module.spill_chunk, []

    def spill_and_remove(*arguments):
        spill(*arguments)
        done.append(arguments)
        if len(done) == 3:
            shutil.rmtree(partial)

    with monkeypatch.context() as patch:
        patch.setattr(module, "spill_chunk", spill_and_remove)
        sentence = refused(convert, str(spec), str(out))
    assert str(partial) in sentence
    assert "was removed while the command was writing" in sentence
    assert not out.exists()
    convert(str(spec), str(out))
    assert os.listdir(out.parent) == ["store"]


def test_bad_input_on_a_restart(write_spec, screen, out, interrupt, refused):
    spec = write_spec(screen, layout=LAYOUT)
    interrupt(spec)
    screen.X = np.log1p(screen.X.toarray())
    assert "log-transformed" in refused(convert, str(write_spec(screen, layout=LAYOUT)), str(out))
    assert not list(out.parent.iterdir())


def test_a_missing_file_leaves_what_is_there(write_spec, screen, out, interrupt, partial, refused):
    """Refused before anything began: the interrupted conversion of before can still go on."""
    spec = write_spec(screen, layout=LAYOUT)
    interrupt(spec)
    before = content(partial)
    (spec.parent / "screen0.h5ad").rename(spec.parent / "away.h5ad")
    assert "screen0.h5ad" in refused(convert, str(spec), str(out))
    assert content(partial) == before


@pytest.mark.parametrize("kind", ["file", "empty folder", "store"])
def test_the_output_exists(write_spec, screen, out, refused, kind):
    if kind == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        if kind == "store":
            (out / "manifest.json").write_text("mine")
    before = content(out.parent)
    sentence = refused(convert, str(write_spec(screen)), str(out))
    for word in (str(out), "already exists", "--out"):
        assert word in sentence
    assert content(out.parent) == before
    assert os.listdir(out.parent) == ["store"]


def test_a_foreign_folder_is_not_deleted(write_spec, screen, out, partial, refused):
    partial.mkdir()
    (partial / "thesis.tex").write_text("mine")
    sentence = refused(convert, str(write_spec(screen)), str(out))
    assert str(partial) in sentence
    assert "thesis.tex" in sentence
    assert content(out.parent) == {"store.partial/thesis.tex": b"mine"}


@pytest.fixture
def bucket(tmp_path):
    """A stand-in for object storage: a folder behind a filesystem that is not local to the code."""
    (tmp_path / "bucket").mkdir()
    return Location(pafs.SubTreeFileSystem(str(tmp_path / "bucket"), pafs.LocalFileSystem()), "store")


def test_an_object_store(
    ray_cluster, write_spec, screen, convert_here, bucket, tmp_path, interrupt, calls, refused
):
    spec = write_spec(screen, layout=LAYOUT)
    interrupt(spec, bucket)
    assert "not a cell store" in refused(Store.open, bucket)  # no manifest, no store
    convert(str(spec), bucket)
    assert calls["reading cells"] == 0
    assert content(tmp_path / "bucket/store") == content(str(convert_here(spec).folder))
    sentence = refused(convert, str(spec), bucket)
    assert "already exists" in sentence


def test_bad_input_for_an_object_store(write_spec, screen, bucket, tmp_path, refused):
    screen.X = np.log1p(screen.X.toarray())
    assert "log-transformed" in refused(convert, str(write_spec(screen)), bucket)
    assert not list((tmp_path / "bucket").iterdir())


def test_other_objects_are_not_deleted(write_spec, screen, bucket, tmp_path, refused):
    (tmp_path / "bucket/store/data").mkdir(parents=True)
    (tmp_path / "bucket/store/data/x.csv").write_text("mine")
    sentence = refused(convert, str(write_spec(screen)), bucket)
    assert "already exists" in sentence
    assert "data" in sentence
    assert content(tmp_path / "bucket") == {"store/data/x.csv": b"mine"}


def test_unreachable_storage(write_spec, screen, refused, monkeypatch):
    monkeypatch.setattr("tadvae.base.filesystem._S3_ATTEMPTS", 2)  # it waits longer after each
    url = "s3://bucket/store?endpoint_override=127.0.0.1:9&scheme=http&region=none"
    sentence = refused(convert, str(write_spec(screen)), url)
    for word in ("s3://bucket/store", "URL", "credentials", "network"):
        assert word in sentence


def test_a_folder_that_cannot_be_made(write_spec, screen, tmp_path, refused):
    sentence = refused(convert, str(write_spec(screen)), str(tmp_path / "spec.yaml" / "store"))
    assert "spec.yaml" in sentence
    assert "permissions" in sentence


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 32 kB, where the machine lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("chunk_rows", [8, 1000])
def test_a_full_disk(ray_cluster, write_spec, screen, small_disk, refused, chunk_rows):
    many = ad.concat([screen] * 60, index_unique="-")
    spec = write_spec(many, layout={"chunk_rows": chunk_rows})
    sentence = refused(convert, str(spec), str(small_disk / "store"))
    for word in (str(small_disk), "disk is full", "free some space"):
        assert word in sentence
    assert not list(small_disk.iterdir())


def test_a_ray_failure_is_no_user_error(ray_cluster, write_spec, screen, out, partial, monkeypatch):
    """Something else than bad input: the traceback is wanted, and what is finished stays for a restart."""
    spec = write_spec(screen, layout=LAYOUT)

    def broken(*arguments):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(module, "write_shard", broken)
    with pytest.raises(ZeroDivisionError, match="a bug") as caught:
        convert(str(spec), str(out))
    assert not isinstance(caught.value, UserError)
    assert not out.exists()
    assert len(list(partial.rglob("*.npz"))) == 6


@pytest.fixture
def s3():
    """An S3 server on this machine: ``s3(path)`` is a URL of its bucket."""
    pytest.importorskip("moto.server", reason="pip install 'moto[server]' to test S3")
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    yield lambda path: f"s3://bucket{path}?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    client.close()
    server.stop()


@pytest.mark.slow
def test_s3(ray_cluster, write_spec, screen, convert_here, s3, refused):
    """The whole way on S3; a local folder's store has the same bytes."""
    spec = write_spec(screen, layout=LAYOUT)
    convert(str(spec), s3("/deep/store"))
    place = Location.of(s3("/deep/store"))
    here = content(str(convert_here(spec).folder))
    assert {name: (place / name).read_bytes() for name in here} == here
    store = Store.open(s3("/deep/store"))
    store.verify(0)
    assert "already exists" in refused(convert, str(spec), s3("/deep/store"))
    assert "other files (such as deep)" in refused(convert, str(spec), s3(""))
    assert "storage cannot be used" in refused(convert, str(spec), s3("-none/store"))
    screen.X = np.log1p(screen.X.toarray())
    assert "log-transformed" in refused(convert, str(write_spec(screen)), s3("/deep/other"))
    assert Location.of(s3("/deep")).names() == ["store"]


def test_workers_of_a_conversion_do_not_import_torch():
    """It would cost each of them seconds and memory."""
    code = "import pipelines.convert, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
