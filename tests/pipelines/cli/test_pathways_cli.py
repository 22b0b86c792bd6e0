"""``tadvae pathways``: selection, a release from a local server, and coverage of a store's panels."""

import functools
import http.server
import json
import threading
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from go_release import DIRECT, GENES, write_release
from scipy import sparse

from pipelines.cli.main import main
from pipelines.pathways import SelectionJob, select_pathways
from pipelines.train.train import train
from tadvae.model.tadvae import TADVAE
from tadvae.pathway_selection.replicability import ReplicabilityConfig, replicability_on_store
from tadvae.pathway_selection.selection import SelectionConfig
from tadvae.pathways.default import packaged
from tadvae.pathways.gmt import read_gmt
from tadvae.pathways.read import read_pathways
from tadvae.pathways.table import read_parquet
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of files on this machine, and the paths that were asked of it."""
    folder, asked = tmp_path / "served", []
    write_release(folder)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=web.serve_forever, daemon=True)
    thread.start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{web.server_address[1]}", folder=folder, asked=asked)
    web.shutdown()
    web.server_close()
    thread.join()


@pytest.fixture
def run(capsys):
    """Call the command; returns exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return done.value.code or 0, out, err

    return run


SMALL = ("--min-genes", 2, "--max-genes", 4)


def test_build_downloads_a_release(server, tmp_path, run, monkeypatch):
    out = tmp_path / "go.parquet"
    monkeypatch.setenv("TADVAE_GO_URL", server.url)
    code, text, _ = run("pathways", "build", "--out", out, "--cache", tmp_path / "cache", *SMALL)
    assert code == 0
    assert server.asked == ["/ontology/go-basic.obo", "/annotations/goa_human.gaf.gz"]
    table = read_parquet(out)
    assert table.ids == ["GO:2", "GO:3", "GO:4"]
    assert table.symbols[2] == ["IRF1", "IRF7", "MX1", "STAT1"]  # GO:5 is part of it
    assert table.ensembl[0][table.symbols[0].index("TP53")] == "ENSG00000141510"
    assert "size: 1 removed (1 with more than 4 genes), 4 left" in text  # the root
    assert "redundancy: 1 removed" in text
    sources = table.provenance["sources"]
    assert [each["release"] for each in sources] == ["2024-01-17", "2024-01-17"]
    assert all(len(each["sha256"]) == 64 for each in sources)
    assert "CC BY 4.0" in table.provenance["licence"]
    assert str(tmp_path) not in json.dumps(table.provenance)


def test_latest_is_fetched_again_and_a_dated_release_is_not(server, tmp_path, run):
    arguments = ("--url", server.url, "--cache", tmp_path / "cache", "--out", tmp_path / "go.parquet", *SMALL)
    run("pathways", "build", *arguments)
    write_release(server.folder, "2025-02-02")
    run("pathways", "build", "--release", "latest", *arguments)
    assert read_parquet(tmp_path / "go.parquet").provenance["sources"][0]["release"] == "2025-02-02"
    assert len(server.asked) == 4
    for _ in range(2):
        run("pathways", "build", "--release", "2025-02-02", *arguments)
        assert len(server.asked) == 6
    assert sorted(p.name for p in (tmp_path / "cache" / "latest").iterdir()) == [
        "go-basic.obo",
        "goa_human.gaf.gz",
    ]


@pytest.mark.parametrize("damage", ["absent", "cut", "unknown", "no server", "date"])
def test_a_release_that_cannot_be_used(server, tmp_path, run, damage):
    url, release, gaf = server.url, "latest", server.folder / "annotations" / "goa_human.gaf.gz"
    if damage == "absent":
        gaf.unlink()
    elif damage == "cut":
        gaf.write_bytes(gaf.read_bytes()[:-20])
    elif damage == "unknown":
        write_release(server.folder, direct={**DIRECT, "GO:9": ["TP53"]})
    elif damage == "no server":
        url = "http://127.0.0.1:9"
    else:
        release = "yesterday"
    arguments = ("--url", url) if damage != "date" else ()
    out = tmp_path / "go.parquet"
    code, _, err = run(
        "pathways", "build", "--out", out, "--release", release, "--cache", tmp_path / "cache", *arguments
    )
    assert code == 2
    assert err.count("\n") == 1
    assert not out.exists()
    expected = {
        "absent": "goa_human.gaf.gz: expected a file to download",
        "cut": "goa_human.gaf.gz: expected a whole gzip file",
        "unknown": "line 15: expected a term of",
        "no server": "go-basic.obo: expected a file to download",
        "date": "release 'yesterday': expected latest or a date",
    }
    assert expected[damage] in err


def test_select_with_ontology_annotations_and_genes(tmp_path, run):
    write_release(tmp_path)
    (tmp_path / "genes.txt").write_text("\n".join(GENES[:11]) + "\n")
    files = (
        "--obo",
        tmp_path / "ontology" / "go-basic.obo",
        "--gaf",
        tmp_path / "annotations" / "goa_human.gaf.gz",
    )
    arguments = ("pathways", "select", *files, "--genes", tmp_path / "genes.txt", "--redundancy", "none")
    code, _, _ = run(*arguments, "--min-genes", 1, "--max-genes", 0, "--out", tmp_path / "a.gmt.gz")
    assert code == 0
    sets = read_gmt(tmp_path / "a.gmt.gz")
    assert dict(zip(sets.ids, sets.genes, strict=True))["GO:5"] == ["IRF7"]  # MX1 is not in the list
    about = json.loads((tmp_path / "a.gmt.gz.provenance.json").read_text())
    assert [each["file"] for each in about["sources"]] == ["go-basic.obo", "goa_human.gaf.gz", "genes.txt"]
    assert about["filters"][-1]["left"] == 5
    run(*arguments, "--min-genes", 1, "--max-genes", 0, "--no-ancestors", "--out", tmp_path / "b.parquet")
    assert read_parquet(tmp_path / "b.parquet").ids == ["GO:2", "GO:3", "GO:5"]
    # a selection is a source again; it knows its ancestors
    run(*arguments, "--min-genes", 1, "--max-genes", 0, "--out", tmp_path / "c.parquet")
    again = ("pathways", "select", tmp_path / "c.parquet", "--preset", "none", "--no-ancestors")
    run(*again, "--out", tmp_path / "d.parquet")
    assert read_parquet(tmp_path / "d.parquet").ids == ["GO:2", "GO:3", "GO:5"]
    assert (
        read_parquet(tmp_path / "d.parquet").provenance["settings"]["made_from"]["settings"]["evidence"]
        == "all"
    )


def test_ancestors_over_regulates_too_where_asked(tmp_path, run):
    obo, gaf = write_release(tmp_path)
    text = obo.read_text()
    obo.write_text(text.replace("name: growth\n", "name: growth\nrelationship: regulates GO:2\n"))
    arguments = (
        "--obo",
        obo,
        "--gaf",
        gaf,
        "--preset",
        "none",
        "--no-ancestors",
        "--out",
        tmp_path / "a.parquet",
    )
    for option, expected in (("--no-regulates", ["GO:2", "GO:3", "GO:5"]), ("--regulates", ["GO:3", "GO:5"])):
        assert run("pathways", "select", *arguments, option)[0] == 0
        assert read_parquet(tmp_path / "a.parquet").ids == expected


def test_the_same_input_gives_the_same_bytes(tmp_path):
    written = []
    for name in ("a", "b"):
        obo, gaf = write_release(tmp_path / name)
        out = tmp_path / f"{name}.parquet"
        select_pathways(SelectionJob(obo=str(obo), gaf=str(gaf)), SelectionConfig(min_genes=2), str(out))
        written.append(out.read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("x.gmt", "--out", "o.csv"), "expected an output file ending in .parquet"),
        (("absent.gmt", "--out", "o.gmt"), "no such file"),
        (("x.gmt", "--out", "o.gmt"), "none after size"),
        (("x.gmt", "--preset", "paper", "--out", "o.gmt"), "name a store, or ask for 0 measured genes"),
        (("x.gmt", "--preset", "paper", "--min-measured", 0, "--out", "o.gmt"), "keep ancestors"),
        (("x.gmt", "--min-replicability", 0.7, "--out", "o.gmt"), "a store to train on"),
        (("--gaf", "x.gaf", "--out", "o.gmt"), "no ontology"),
        (("x.gmt", "--min-genes", 50, "--out", "o.gmt"), "max_genes 29 is below min_genes 50"),
        (("x.gmt", "--genes", "empty.txt", "--out", "o.gmt"), "expected one gene per line"),
        (("x.gmt", "--genes", "g.txt", "--store", "s", "--out", "o.gmt"), "either a store or a list"),
        (("--obo", "x.obo", "--out", "o.gmt"), "x.obo: expected"),
        (("--evidence", "XX", "--obo", "go.obo", "--gaf", "x.gaf", "--out", "o.gmt"), "evidence 'XX'"),
    ],
)
def test_refusals(tmp_path, run, monkeypatch, arguments, part):
    monkeypatch.chdir(tmp_path)
    Path("x.gmt").write_text("P:1\tone\tTP53\tMYC\n")
    Path("empty.txt").write_text("\n")
    Path("g.txt").write_text("TP53\n")
    Path("go.obo").write_text(write_release(tmp_path)[0].read_text())
    code, _, err = run("pathways", "select", *arguments)
    assert code == 2
    assert part in err
    assert err.startswith("tadvae: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("o.*"))


def human_screen(genes: list[str], seed: int) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(2.0, (60, len(genes))).astype(np.float32)
    obs = pd.DataFrame(
        {
            "condition": np.tile(["control", genes[0], genes[1], f"{genes[0]}+{genes[1]}"], 15),
            "line": "K562",
        },
        index=[f"cell{i}" for i in range(60)],
    )
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=genes))


@pytest.fixture
def human_spec(write_spec) -> Path:
    """A panel of type I interferon and one without it."""
    table = packaged()
    interferon = table.symbols[table.ids.index("GO:0034340")]
    division = table.symbols[table.ids.index("GO:0090307")]
    return write_spec(
        human_screen(interferon[:40], 0), human_screen(division[:30] + interferon[-3:], 1), reference="human"
    )


def test_list_and_show_say_what_each_dataset_sees(human_spec, convert_here, run):
    store = convert_here(human_spec).folder
    code, text, _ = run("pathways", "list", "--store", store)
    assert code == 0
    *lines, first, second = text.splitlines()
    rows = [line.split("\t") for line in lines]
    assert rows[0] == ["pathway", "name", "genes", "screen0", "screen1"]
    counts = {row[0]: (int(row[3]), int(row[4])) for row in rows[1:]}
    assert counts["GO:0034340"] == (40, 3)
    assert counts["GO:0090307"][1] == 30
    assert all(max(pair) >= 5 for pair in counts.values())
    for sentence, name, size, column in ((first, "screen0", 40, 0), (second, "screen1", 33, 1)):
        seen = sum(pair[column] >= 5 for pair in counts.values())
        assert sentence.startswith(
            f"{name} measures {size} genes: it can see {seen:,} of 3,227 pathways (5 or more"
        )
        assert f"cannot see {3227 - seen:,}" in sentence
    everything = json.loads(
        run("pathways", "list", "--store", store, "--all", "--json", "--min-measured", 2)[1]
    )
    assert len(everything["pathways"]) == 3227
    assert "(2 or more measured genes)" in everything["summary"][0]

    code, text, _ = run("pathways", "show", "GO:0034340", "--store", store)
    assert code == 0
    title, _, first, second = text.splitlines()
    assert title == "GO:0034340 response to type I interferon: 51 genes, from the packaged default pathways"
    assert first.startswith(
        "screen0 (40 genes) can see it: 40 of 51 genes measured, 5 needed (measured: AZI2"
    )
    assert second.startswith("screen1 (33 genes) cannot see it: 3 of 51 genes measured, 5 needed")
    assert run("pathways", "show", "Response to type I Interferon")[1].startswith(title)


def test_list_and_show_without_a_store(tmp_path, run):
    (tmp_path / "x.gmt").write_text("P:1\tone thing\tTP53\tMYC\nP:2\ttwo\tTP53\n")
    code, text, _ = run("pathways", "list", "--pathways", tmp_path / "x.gmt")
    assert code == 0
    assert text.splitlines()[1:3] == ["P:1\tone thing\t2", "P:2\ttwo\t1"]
    code, _, err = run("pathways", "show", "on thing", "--pathways", tmp_path / "x.gmt")
    assert code == 2
    assert "similar are P:1 one thing" in err
    code, _, err = run("pathways", "list", "--min-measured", 3)
    assert code == 2
    assert "add --store" in err


def test_select_for_a_store(human_spec, convert_here, tmp_path, run):
    """Sizes count the genes that some panel measures, and at least one panel must see what is left."""
    store = convert_here(human_spec).folder
    code, text, _ = run(
        "pathways", "select", "--store", store, "--min-measured", 12, "--out", tmp_path / "a.parquet"
    )
    assert code == 0
    table = read_parquet(tmp_path / "a.parquet")
    keys = set(Store.open(store).genes["gene"])
    assert all(set(part) <= keys for part in table.ensembl)
    assert all(10 <= len(part) <= 29 for part in table.ensembl)
    assert "with fewer than 12 measured genes in every dataset" in text
    assert table.provenance["settings"]["store_vocabulary"] == Store.open(store).manifest.vocabulary_hash


@pytest.mark.slow
def test_train_uses_the_packaged_default(human_spec, convert_here, tmp_path):
    store = convert_here(human_spec).folder
    settings = [
        "train.epochs=1",
        "model.pathway={d_embed: 8, n_heads: 2}",
        "model.causal={n_factors: 2, hidden: 8}",
        "model.decoder={d_gene: 8, hidden: 8}",
    ]
    train(str(store), str(tmp_path / "run"), ExperimentConfig.load(None, settings))
    vocabulary = TADVAE.from_pretrained(tmp_path / "run").vocabulary
    known = dict(zip(packaged().ids, packaged().names, strict=True))
    assert 10 < vocabulary.membership.n_pathways < len(known)
    for key, name in zip(vocabulary.membership.pathway_ids, vocabulary.membership.names, strict=True):
        assert known[key] == name
    assert vocabulary.available.any(axis=0).all()
    assert not vocabulary.available.all(axis=0).all()  # each panel has pathways of its own
    screen = human_screen(packaged().symbols[packaged().ids.index("GO:0034340")][:40], 2)
    activity = TADVAE.from_pretrained(tmp_path / "run").activities(screen)
    available = screen.uns["tadvae"]["available"]
    np.testing.assert_array_equal(available, vocabulary.available[0])
    np.testing.assert_array_equal(activity.notna().all(axis=0), available)
    np.testing.assert_array_equal(activity.isna().all(axis=0), ~available)


@pytest.mark.slow
def test_replicability_by_ray_equals_a_plain_loop(ray_cluster, store, simulated, tmp_path, run, one_thread):
    gmt = simulated.folder / "pathways.gmt"
    config = ReplicabilityConfig(runs=2, max_cells=100, training={"batch_size": 32})
    by_loop = replicability_on_store(store, read_pathways(gmt), config)
    assert by_loop.shape == (9, 2)
    assert by_loop.max().max() > 0.5
    best = by_loop.max(axis=1)
    bound = float(best.nlargest(5).iloc[-1]) - 1e-4
    command = ("pathways", "select", gmt, "--preset", "none", "--store", store.folder, "--min-measured", 5)
    options = ("--runs", 2, "--max-cells", 100, "--batch-size", 32, "--min-replicability", bound)
    code, text, _ = run(*command, *options, "--out", tmp_path / "a.parquet")
    assert code == 0
    table = read_parquet(tmp_path / "a.parquet")
    assert set(table.ids) == set(best.index[best > bound])
    assert f"({9 - len(table)} with a replicability of" in text
    for key in table.ids:
        assert table.replicability[key] == pytest.approx(best[key], rel=1e-3)
    assert table.provenance["settings"]["replicability"]["runs"] == 2
