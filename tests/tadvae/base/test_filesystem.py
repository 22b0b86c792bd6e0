"""Locations: the same words for a disk and for object storage, and files that are whole or absent."""

import os
import pickle
import resource
import socketserver
import threading
from contextlib import suppress
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs as pafs
from ray import cloudpickle

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location


@pytest.fixture(params=["disk", "object store"])
def folder(request, tmp_path):
    """A folder on the disk, and the same behind a filesystem that is not local to the code."""
    if request.param == "disk":
        return Location.of(tmp_path)
    return Location(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "bucket")


def test_files(folder):
    place = folder / "a/b/file.txt"
    assert not place.exists()
    assert place.size() is None
    (folder / "a/b").make_folder()
    place.write_text("größer")
    assert place.exists()
    assert place.size() == 8
    assert place.read_text() == "größer"
    assert (folder / "a/b").names() == ["file.txt"]
    assert (folder / "a/b").size() is None
    place.write_bytes(b"other")
    assert place.read_bytes() == b"other"
    assert (place.name, place.sibling(".x").name) == ("file.txt", "file.txt.x")
    assert pickle.loads(pickle.dumps(place)).read_bytes() == b"other"


def test_delete(folder):
    (folder / "a").make_folder()
    (folder / "a/x").write_text("x")
    (folder / "a/x").delete()
    (folder / "a/x").delete()  # an absent one is no error
    assert (folder / "a").names() == []
    (folder / "a/y").write_text("y")
    (folder / "a").delete()
    assert not (folder / "a").exists()
    assert (folder / "nothing").names() == []


def test_what_a_location_is_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Location.of("run") == Location.of(tmp_path / "run") == Location.of("~/run")
    assert Location.of(tmp_path.as_uri()) == Location.of(tmp_path)
    assert Location.of(Location.of("run")) == Location.of("run")
    assert str(Location.of("run") / "model") == str(tmp_path / "run" / "model")


@pytest.mark.parametrize(
    ("url", "words"),
    [("nope://x/y", ["nope://x/y", "s3://"]), ("s3://", ["s3://", "bucket"]), ("s3://b/x?nope=1", ["nope"])],
)
def test_an_unusable_url(refused, url, words):
    sentence = refused(Location.of, url)
    for word in words:
        assert word in sentence


def test_unreachable_storage(refused, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    quick = pafs.AwsStandardS3RetryStrategy(max_attempts=1)
    s3 = pafs.S3FileSystem(endpoint_override="127.0.0.1:9", scheme="http", region="x", retry_strategy=quick)
    place = Location(s3, "bucket/store")
    calls = [
        place.exists,
        place.size,
        place.names,
        place.delete,
        place.make_folder,
        lambda: place.write_text("x"),
    ]
    for call in calls:
        sentence = refused(call)
        assert "s3://bucket/store" in sentence
        assert "network" in sentence


def test_a_file_in_the_way(refused, tmp_path):
    (tmp_path / "file").touch()
    place = Location.of(tmp_path / "file" / "store")
    for call in (place.make_folder, lambda: place.write_text("x")):
        sentence = refused(call)
        assert str(tmp_path) in sentence
        assert "permissions" in sentence


class Refusing(socketserver.BaseRequestHandler):
    """Takes the request and hangs up."""

    asked = 0

    def handle(self):
        type(self).asked += 1


def test_s3_is_asked_again_also_by_a_copy_of_the_location(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "none")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "none")
    monkeypatch.setattr("tadvae.base.filesystem._S3_ATTEMPTS", 5)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        place = Location.of("s3://bucket/x?region=us-east-1")
        for copy in (place, pickle.loads(pickle.dumps(place)), cloudpickle.loads(cloudpickle.dumps(place))):
            Refusing.asked = 0
            with pytest.raises(UserError, match="s3://bucket/x: the storage cannot be used"):
                copy.exists()
            assert Refusing.asked >= 4
        server.shutdown()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    place = Location.of(tmp_path / "file")
    place.write_text("old")

    def write_half() -> None:
        with place.replacing() as partial:
            Path(partial.path).write_text("ne")
            assert place.read_text() == "old"
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        write_half()
    assert place.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_object_appears_only_when_complete(tmp_path):
    place = Location(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "file")
    with place.replacing() as partial:
        assert partial == place


def test_a_full_disk(refused, tmp_path):
    place = Location.of(tmp_path / "file")
    place.write_text("old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        sentence = refused(place.write_bytes, b"x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert str(place) in sentence
    assert "disk is full" in sentence
    assert "free some space" in sentence
    assert place.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_other_errors_are_not_hidden(tmp_path):
    with pytest.raises(FileNotFoundError):
        Location.of(tmp_path / "none").read_bytes()
    with pytest.raises(pa.ArrowInvalid), Location.of(tmp_path).reachable():
        raise pa.ArrowInvalid("not of the storage")


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(["..", ".", "", "a", "step-1", "link", "~", "\0", "\n"]), max_size=5).map(
        "/".join
    )
)
def test_what_a_file_names_lies_inside(tmp_path_factory, name):
    folder = tmp_path_factory.getbasetemp() / "inside"
    folder.mkdir(exist_ok=True)
    if not (folder / "link").is_symlink():
        (folder / "link").symlink_to("..")
    with suppress(UserError):
        found = Location.of(folder).inside(name, r"[\w/.~-]+", "a file")
        assert Path(os.path.realpath(found.path)).is_relative_to(folder.resolve())
        assert ".." not in found.path.split("/")


@pytest.mark.parametrize("name", [None, 3, ["step-1"], "step-1\n", "../step-1", "step-1/..", "x" * 500])
def test_a_name_of_another_form_is_refused(tmp_path, refused, name):
    sentence = refused(Location.of(tmp_path).inside, name, r"step-\d+", "list.json")
    assert sentence.startswith("list.json: names ")
