"""Public screens: fetched from a server on this machine, checked, and converted by the spec beside them."""

import functools
import hashlib
import http.server
import json
import threading
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml
from local_conversion import convert_locally
from scipy import sparse

from pipelines.cli.main import main
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.datasets.fetch import CHECKSUMS, fetch
from tadvae.datasets.registry import Entry, find_entry, registered
from tadvae.store.spec import load_spec

GENES = ["SPI1", "EP300", "SNAI1", "KLF1", "MAP2K6", "CEBPE", "STAT1", "ATF2"]


class Counting(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(self.path)
        super().do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(tmp_path):
    """Serves ``tmp_path / "public"``, and remembers what it was asked for."""
    (tmp_path / "public").mkdir()
    handler = functools.partial(Counting, directory=str(tmp_path / "public"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.asked, server.folder = [], tmp_path / "public"
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def publish(server, name, labels, column="perturbation", **others):
    """A screen with cells of every label, four each, under a name that can be fetched."""
    rng = np.random.default_rng(4)
    values = rng.poisson(4.0, (4 * len(labels), len(GENES))).astype(np.float32)
    obs = pd.DataFrame(
        {column: np.repeat(np.array(labels, object), 4)}, index=[f"c{i}" for i in range(len(values))]
    )
    for key, value in others.items():
        obs[key] = value
    adata = ad.AnnData(sparse.csr_matrix(values), obs=obs, var=pd.DataFrame(index=GENES))
    adata.write_h5ad(server.folder / name)
    return server.folder / name


def entry_of(server, file, **settings):
    text = {
        "about": "a screen",
        "url": f"{server.url}/{file.name}",
        "licence": "CC0",
        "citation": "Us, 2026",
        "source": "us",
        "dataset": {
            "name": "own",
            "path": file.name,
            "perturbation": {"column": "perturbation", "control": "control"},
        },
    }
    return Entry.parse({**text, **settings}, "entry")


LABELS = {  # as the processing scripts of scPerturb write them, and the targets that must come out
    "norman19": (["control", "KLF1", "KLF1_MAP2K6"], [(), ("KLF1",), ("KLF1", "MAP2K6")]),
    "adamson16": (
        ["62(mod)_pBA581", "Gal4-4(mod)_pBA582", "SPI1_pDS255", "*", np.nan],
        [(), ("SPI1",)],
    ),
    "dixit16": (["control", "STAT1", "STAT1_KLF1", "None", "nan"], [(), ("STAT1",), ("KLF1", "STAT1")]),
    "replogle22_k562": (["control", "EP300"], [(), ("EP300",)]),
    "replogle22_rpe1": (["non-targeting", "EP300"], [(), ("EP300",)]),
    "nadig24_hepg2": (["non-targeting", "EP300"], [(), ("EP300",)]),
    "nadig24_jurkat": (["control", "EP300"], [(), ("EP300",)]),
    "papalexi21": (["control", "NTg4", "ATF2g1", "ATF2g2"], [(), ("ATF2",)]),
    "frangieh21": (["control", "STAT1", np.nan], [(), ("STAT1",)]),
}


def test_every_entry_has_its_licence_and_citation():
    entries = registered()
    assert set(entries) == set(LABELS)
    for name, entry in entries.items():
        assert entry.dataset.name == name
        assert entry.url.endswith(f"/{entry.dataset.path}")
        assert entry.licence == "CC-BY-4.0"
        assert "doi:10." in entry.citation
        assert "doi:10." in entry.source


@pytest.mark.parametrize("name", sorted(LABELS))
def test_every_spec_converts_a_file_with_such_labels(name, server, tmp_path):
    labels, expected = LABELS[name]
    entry = registered()[name]
    publish(server, entry.dataset.path, labels, batch="b", perturbation_2="Control")
    checked = entry.model_copy(update={"checksum": None})  # of the real file
    spec = fetch([checked], tmp_path / "screens", mirror=server.url)
    loaded = load_spec(spec).datasets[0]
    assert loaded.model_dump(exclude={"path"}) == entry.dataset.model_dump(exclude={"path"})
    store = convert_locally(spec, Location.of(tmp_path / "store"))
    names = {"control" if not targets else "+".join(targets) for targets in expected}
    assert set(store.perturbations["name"]) == names
    excluded = {"*", "None", "nan"}
    kept = [label for label in labels if isinstance(label, str) and label not in excluded]
    assert store.manifest.n_cells == 4 * len(kept)


def test_a_checksum_is_kept_and_checked(server, tmp_path):
    entry = entry_of(server, publish(server, "own.h5ad", ["control", "KLF1"]))
    publish(server, "other.h5ad", ["control", "STAT1"])
    about = {"url": f"{server.url}/other.h5ad", "dataset": {"name": "other", "path": "other.h5ad"}}
    other = Entry.parse({**entry.model_dump(), **about}, "other")
    out = tmp_path / "screens"
    spec = fetch([entry], out)
    kept = json.loads((out / CHECKSUMS).read_text())
    content = (server.folder / "own.h5ad").read_bytes()
    assert kept["own.h5ad"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert (out / "own.h5ad").read_bytes() == content
    assert yaml.safe_load(spec.read_text())["datasets"][0]["path"] == "own.h5ad"
    spec.write_text(spec.read_text().replace("control: control", "control: [control, NT]"))
    fetch([entry, other], out)
    assert server.asked == ["/own.h5ad", "/other.h5ad"]  # once each
    mine, new = yaml.safe_load(spec.read_text())["datasets"]
    assert mine["perturbation"]["control"] == ["control", "NT"]  # what was edited stays
    assert new["name"] == "other"

    (out / "own.h5ad").write_bytes(content + b"more")
    with pytest.raises(UserError, match=r"expected .* as at its first download .* delete it"):
        fetch([entry], out)
    (out / "own.h5ad").unlink()
    publish(server, "own.h5ad", ["control", "STAT1"])
    with pytest.raises(UserError, match="the publisher has changed the file"):
        fetch([entry], out)
    assert sorted(path.name for path in out.iterdir()) == [CHECKSUMS, "other.h5ad", "spec.yaml"]
    (out / CHECKSUMS).write_text("[")
    with pytest.raises(UserError, match=r"checksums\.json: damaged"):
        fetch([entry], out)


def test_a_published_checksum_is_checked(server, tmp_path):
    file = publish(server, "own.h5ad", ["control", "KLF1"])
    md5 = hashlib.md5(file.read_bytes()).hexdigest()
    fetch([entry_of(server, file, checksum=f"md5:{md5}")], tmp_path / "good")
    assert (tmp_path / "good/own.h5ad").exists()
    wrong = entry_of(server, file, checksum=f"md5:{'0' * 32}")
    with pytest.raises(UserError, match=f"its md5 is {md5}, expected {'0' * 32} as published"):
        fetch([wrong], tmp_path / "bad")
    assert list((tmp_path / "bad").iterdir()) == []


def test_what_cannot_be_fetched(server, tmp_path):
    gone = entry_of(server, Path("gone.h5ad"))
    with pytest.raises(UserError, match=r"gone\.h5ad: expected a file to download, found none"):
        fetch([gone], tmp_path / "screens")
    assert list((tmp_path / "screens").iterdir()) == []
    with pytest.raises(UserError, match="asked for twice"):
        fetch([gone, gone], tmp_path / "screens")
    with pytest.raises(UserError, match=r"not in the registry \(known: adamson16, "):
        find_entry("norman")
    for settings, words in (
        ({"checksum": "abc"}, "'checksum': expected md5: and 32"),
        ({"url": "ftp://x/own.h5ad"}, "'url': expected an address"),
        ({"dataset": {"name": "own", "path": "../own.h5ad"}}, "'dataset': expected 'path' to be"),
    ):
        with pytest.raises(UserError, match=words):
            entry_of(server, Path("own.h5ad"), **settings)


def test_the_commands(server, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["datasets", "list", "--json"])
    assert not ended.value.code
    listed = json.loads(capsys.readouterr().out)
    assert listed["norman19"]["url"] == registered()["norman19"].url
    with pytest.raises(SystemExit):
        main(["datasets", "list"])
    assert "dixit16" in capsys.readouterr().out

    entry = entry_of(server, publish(server, "own.h5ad", ["control", "KLF1"]))
    (tmp_path / "own.yaml").write_text(entry.to_yaml())
    with pytest.raises(SystemExit) as ended:
        main(["datasets", "fetch", str(tmp_path / "own.yaml"), "--out", str(tmp_path / "screens")])
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "own: CC0; please cite Us, 2026" in said
    store = convert_locally(tmp_path / "screens/spec.yaml", Location.of(tmp_path / "store"))
    assert store.manifest.n_cells == 8
    for code in (0, 2):  # the second time the folder is not empty
        with pytest.raises(SystemExit) as ended:
            main(["datasets", "export", str(tmp_path / "store"), "--out", str(tmp_path / "files")])
        assert (ended.value.code or 0) == code
    said = capsys.readouterr()
    assert "own.h5ad: written" in said.out.replace("\n", "")
    assert "expected a new or empty folder" in said.err
    again = convert_locally(tmp_path / "files/spec.yaml", Location.of(tmp_path / "again"))
    assert again.manifest.vocabulary_hash == store.manifest.vocabulary_hash
    with pytest.raises(SystemExit) as ended:
        main(["datasets", "fetch", "norman19", "--out", str(tmp_path / "n"), "--url", server.url])
    assert ended.value.code == 2
    assert "NormanWeissman2019_filtered.h5ad: expected a file" in capsys.readouterr().err
