"""The page of a run: its figures against the run itself, and a browser that sorts and filters it."""

import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from local_conversion import convert_locally
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from small_screens import SCREENS, small_config

from pipelines.cli.main import main
from pipelines.report import report_run
from pipelines.train.ensemble import train_one
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.evaluation.evaluate import evaluate
from tadvae.evaluation.metrics import pearson_delta
from tadvae.model.conformal import Calibration
from tadvae.model.run_folder import RunFolder
from tadvae.model.tadvae import TADVAE
from tadvae.report import page as page_module
from tadvae.report.charts import COLOURS, Scale, diverging
from tadvae.report.gather import Run, gather
from tadvae.report.page import page
from tadvae.report.prediction import prediction_of
from tadvae.report.prediction_page import prediction_page
from tadvae.simulation.files import write_simulation
from tadvae.simulation.simulate import simulate
from tadvae.store.reader import Store

pytestmark = pytest.mark.slow

STEPS = [
    {"step": s, "epoch": s // 3, "loss": 4.0 - 0.5 * s, "kl": 2.0 + s, "cells": 9, "seconds": 0.1}
    | {"time": 1.8e9 + s, "workers": 2, "epochs_done": (s + 1) / 3, "cells_seen": 9 * s}
    for s in range(6)
]


@pytest.fixture(scope="module")
def screens(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "screens"
    write_simulation(simulate(SCREENS), folder)
    return folder


@pytest.fixture(scope="module")
def store(screens) -> Store:
    return convert_locally(screens / "spec.yaml", Location.of(screens.parent / "store"))


@pytest.fixture(scope="module")
def run(store, screens) -> Path:
    """A finished run of a soft mask whose noise moves edges across, with a log, evaluated."""
    folder = screens.parent / "run"
    config = small_config(
        screens,
        "split={kind: combo, folds: 4}",
        "model.pathway={masking: soft_log, d_embed: 8, n_heads: 2, candidates: 5, gate_noise: 2.0}",
    )
    train_one(str(store.folder), str(folder), config.to_yaml())
    for first in (0, 3):
        lines = "".join(json.dumps(step) + "\n" for step in STEPS[first : first + 3])
        (folder / f"log/steps-{first:09d}.jsonl").write_text(lines)
    loaded = Run.load(str(folder))
    write_scores(loaded, evaluate(store, loaded.groups, loaded.model).table)
    return folder


def write_scores(run, table):
    run.folder.write_scores("all", table, {})


@pytest.fixture(scope="module")
def report(run, store):
    return gather(Run.load(str(run)), store)


class Page(HTMLParser):
    """Whether a page is well formed, and what it would load."""

    def __init__(self):
        super().__init__()
        self.open, self.loads, self.ids, self.labelled, self.words = [], [], [], [], ""

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset") and v]
        self.ids += [values["id"]] if "id" in values else []
        if tag == "svg":
            assert values["role"] == "img"
            self.labelled += values["aria-labelledby"].split()
        if tag not in ("meta", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data


def test_comparisons_are_what_the_model_predicts_and_the_screens_hold(report, run, screens):
    model, groups = TADVAE.from_pretrained(run), pd.read_parquet(run / "split.parquet")
    held = groups[groups["part"] == "test"]
    assert report.asked == len(report.comparisons) == len(held)
    found = {(c.dataset, c.context, c.perturbation): c for c in report.comparisons}
    row = held.iloc[0]
    entry = model.vocabulary.datasets[int(row["dataset"])]
    screen = ad.read_h5ad(screens / f"{row['dataset_name']}.h5ad")
    sc.pp.normalize_total(screen, target_sum=1e4)
    sc.pp.log1p(screen)
    genes = model.vocabulary.genes["gene"].to_numpy()[entry.genes]
    screen = screen[screen.obs["cell_type"] == row["context_name"], genes]

    def mean(condition):
        return np.asarray(screen[screen.obs["condition"] == condition].X.mean(axis=0)).ravel()

    control = mean("control")
    change = mean(row["perturbation_name"]) - control
    shown = found[row["dataset_name"], row["context_name"], row["perturbation_name"]]
    assert len(shown.genes) == min(60, len(entry.genes))
    at = [model.vocabulary.symbols(entry.genes).index(gene) for gene in shown.genes]
    np.testing.assert_allclose(shown.observed, change[at], atol=1e-5)
    adata = model.predict(row["perturbation_name"], context=row["context_name"], dataset=row["dataset_name"])
    moved = (adata.var["predicted_mean"] - adata.var["control_mean"]).to_numpy()
    np.testing.assert_allclose(shown.predicted, moved[at], atol=1e-4)
    expected = pearson_delta(control + moved, control + change, control)
    assert shown.pearson_delta == pytest.approx(expected, abs=1e-3)
    scores = pd.read_parquet(run / "evaluation/all.parquet")
    own = scores[scores["method"].eq("tadvae") & scores["metric"].eq("pearson_delta")]
    assert [c.pearson_delta for c in report.comparisons] == pytest.approx(
        sorted(own["value"], reverse=True), abs=1e-6
    )


def test_tables_and_curves_are_those_of_the_run(report, run):
    groups = pd.read_parquet(run / "split.parquet")
    assert report.datasets["cells"].tolist() == groups.groupby("dataset")["n_cells"].sum().tolist()
    assert report.datasets["held out"].sum() == (groups["part"] == "test").sum()
    curve = report.curves["run"]
    assert curve["loss"].tolist() == [3.5, 2.0]
    assert curve["kl"].tolist() == [3.0, 6.0]
    assert set(curve.columns) == {"epoch", "loss", "kl"}
    scores = pd.read_parquet(run / "evaluation/all.parquet")
    for row in report.scores[report.scores["category"] == "all"].itertuples():
        part = scores[(scores["method"] == row.method) & (scores["metric"] == row.metric)]
        assert row.mean == pytest.approx(part["value"].mean(), nan_ok=True)
    assert len(report.groups) == report.asked


def test_graph_mask_and_activity_are_those_of_the_model(report, run):
    model = TADVAE.from_pretrained(run)
    graph = model.graph()
    assert len(report.factors.edges) == (np.abs(graph) >= 0.05).sum()
    for edge in report.factors.edges.itertuples():
        assert edge.effect == pytest.approx(graph[edge.source, edge.target])
    top = model.factors(top=1)["name"].tolist()
    assert all(name.startswith(f"{k}: {top[k]}") for k, name in enumerate(report.factors.names))
    layer = model.module.pathway
    middle = (1 + layer.candidate_start()[layer.edges.pathway]) / 2
    inside, member = (layer.mask > middle).numpy(), layer.edges.is_member.numpy()
    changes = report.mask.edges["change"].value_counts()
    assert changes["added"] == (inside & ~member).sum() > 0
    assert changes["removed"] == (~inside & member).sum() > 0
    controls = [name for name in report.activity if name.startswith("control (")]
    assert len(controls) == len({(c.dataset, c.context) for c in report.comparisons})
    assert len(report.activity.columns) == len(controls) + len(report.comparisons)
    assert report.activity.index.tolist() == model.vocabulary.membership.names


def test_the_page_is_whole_and_loads_nothing(report):
    html = page(report)
    found = Page()
    found.feed(html)
    found.close()
    assert found.open == []
    assert found.loads
    assert all(each.startswith("data:text/csv;charset=utf-8,") for each in found.loads)
    assert "http" not in html
    assert len(found.ids) == len(set(found.ids))
    assert set(found.labelled) <= set(found.ids)
    own = report.scores.query("category == 'all' and method == 'tadvae' and metric == 'rmse'").iloc[0]
    assert f"{own['mean']:.3f}" in found.words
    assert f"[{own['low']:.3f}, {own['high']:.3f}]" in found.words
    points = re.findall(r'<polyline class="curve" data-term="loss" points="([^"]+)"', html)[0].split()
    heights = [float(point.split(",")[1]) for point in points]
    assert heights == [30.0, 152.0]  # the largest value above, the smallest on the axis
    assert html.count('fill-opacity=".7"') == sum(len(c.genes) for c in report.comparisons)


def test_a_page_without_store_and_scores_says_what_makes_them(run, tmp_path):
    copy = tmp_path / "a run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("evaluation"))
    about = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**about, "store": str(tmp_path / "gone")}))
    (copy / "SHA256SUMS").unlink()
    with pytest.raises(SystemExit) as ended:
        main(["report", str(copy), "--out", str(tmp_path / "r.html")])
    assert not ended.value.code
    html = (tmp_path / "r.html").read_text()
    assert f"tadvae evaluate &#39;{copy}&#39;" in html
    assert "was not found" in html
    assert "scatter-0" not in html


def test_an_ensemble_shows_intervals_and_how_many_seeds_agree(run, store, tmp_path):
    place = RunFolder(tmp_path / "ensemble")
    for seed in (0, 1):
        shutil.copytree(run, f"{place}/members/seed-{seed}", ignore=shutil.ignore_patterns("evaluation"))
    about = {"members": ["members/seed-0", "members/seed-1"], "calibration_folds": 2}
    place.begin_ensemble(TADVAE.from_pretrained(run).config, about)
    datasets = TADVAE.from_pretrained(run).vocabulary.datasets
    scale = {entry.name: np.linspace(0.1, 0.4, len(entry.genes)) for entry in datasets}
    place.write_calibration(Calibration(0.9, 2.0, scale, 12, "combo", True))
    loaded = Run.load(str(place))
    write_scores(loaded, evaluate(store, loaded.groups, loaded.model).table)
    report = gather(loaded, store)
    assert set(report.factors.edges["share"]) <= {1.0}  # the same weights twice
    for shown in report.comparisons:
        entry = next(d for d in datasets if d.name == shown.dataset)
        names = loaded.model.vocabulary.symbols(entry.genes)
        at = [names.index(gene) for gene in shown.genes]
        np.testing.assert_allclose(shown.half_width, 2.0 * scale[shown.dataset][at], atol=1e-6)
    html = page(report)
    assert "share of seeds" in html
    assert html.count('class="interval"') == sum(len(c.genes) for c in report.comparisons)
    own = report.scores.query("category == 'all' and metric == 'coverage'")
    assert f"{own['mean'].iloc[0]:.3f}" in html.split("<h2>Intervals</h2>")[1].split("</section>")[0]
    assert report.commands[0].endswith("--seeds 2 --calibration-folds 2")


def test_a_run_that_was_not_evaluated_is_evaluated_first(run, ray_cluster, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("evaluation"))
    report = report_run(str(copy), str(tmp_path / "r.html"))
    before = pd.read_parquet(run / "evaluation/all.parquet")
    after = pd.read_parquet(copy / "evaluation/all.parquet")
    pd.testing.assert_frame_equal(before, after, rtol=1e-6)
    assert not report.notes
    assert (tmp_path / "r.html").read_text() == page(report)


def test_unfinished_runs_and_other_stores_are_refused(run, tmp_path):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished)
    (unfinished / "model/model.safetensors").unlink()
    for folder, out, words in (
        (unfinished, "r.html", "has not finished"),
        (tmp_path / "none", "r.html", "no such folder"),
        (run, "r.pdf", r"ends in \.html"),
    ):
        with pytest.raises(UserError, match=words):
            report_run(str(folder), str(tmp_path / out))
    with pytest.raises(UserError, match="not a cell store"):
        report_run(str(run), str(tmp_path / "r.html"), str(tmp_path))
    assert not (tmp_path / "r.html").exists()


A4 = {"width": 718, "height": 1047, "deviceScaleFactor": 1, "mobile": False}  # at 96 dpi, within the margins
TOO_WIDE = """
return [...document.querySelectorAll("table, svg, pre, figure, p")].filter((e) =>
  e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 90));
"""


def test_in_print_nothing_is_cut_off_or_folded(report, browser, tmp_path):
    (tmp_path / "r.html").write_text(page(report))
    browser.get((tmp_path / "r.html").as_uri())
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", A4)
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script(TOO_WIDE) == []
    printed = browser.find_elements(By.CSS_SELECTOR, "details:not(.screen)")
    assert len(printed) == 4
    assert all(part.get_attribute("open") for part in printed)
    assert not browser.find_element(By.CLASS_NAME, "controls").is_displayed()
    assert browser.get_log("browser") == []


def test_a_keyboard_is_enough(report, browser, tmp_path):
    """Everything that can be worked is reached by the tab key, and answers to the enter key."""
    (tmp_path / "r.html").write_text(page(report))
    browser.get((tmp_path / "r.html").as_uri())
    reached = []
    for _ in range(400):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        at = browser.switch_to.active_element
        if at.tag_name == "body":
            break
        reached.append((at.tag_name, at.get_attribute("id") or at.text))
        if reached[-1] == ("button", "pearson_delta") and "sorted" not in reached:
            at.send_keys(Keys.ENTER)
            reached.append("sorted")
        if reached[-1] == ("summary", "config.yaml"):
            at.send_keys(Keys.ENTER)
    for wanted in (("input", "filter"), ("select", "category"), "sorted", ("summary", "config.yaml")):
        assert wanted in reached
    rows = browser.find_elements(By.CSS_SELECTOR, "#groups tbody tr")
    heads = browser.find_elements(By.CSS_SELECTOR, "#groups th")
    (at,) = [i for i, head in enumerate(heads) if head.get_attribute("aria-sort") == "ascending"]
    assert heads[at].text == "pearson_delta"
    values = [float(row.find_elements(By.TAG_NAME, "td")[at].get_attribute("data-value")) for row in rows]
    assert values == sorted(values)
    assert browser.find_elements(By.TAG_NAME, "details")[-1].get_attribute("open")


DOWNLOADS = """
return [...document.querySelectorAll("table")].map((table) => [table.id,
  table.querySelectorAll("tbody tr").length,
  decodeURIComponent(table.parentElement.nextElementSibling.querySelector("a[download]").href.split(",")[1]),
]);
"""


def test_pages_fit_a_phone_and_their_tables_are_csv(report, run, on_a_phone, browser):
    """375 pixels: nothing but the boxes of wide tables and charts scrolls sideways."""
    model = TADVAE.from_pretrained(run)
    row = report.comparisons[0]
    adata = model.predict(row.perturbation, context=row.context, dataset=row.dataset)
    for html in (prediction_page(prediction_of(model, adata)), page(report)):
        assert on_a_phone(html) == []
    tables = browser.execute_script(DOWNLOADS)
    assert len(tables) > 5
    for _, n, text in tables:
        frame = pd.read_csv(io.StringIO(text))
        assert len(frame) >= n > 0  # of scores, the file has one row per method and metric
    (text,) = (text for name, _, text in tables if name == "groups")
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(text)), report.groups, check_dtype=False)


def test_graphs_are_tables_too(report):
    html = page(report)
    for name, graph in (("factors-edges", report.factors), ("causal-edges", report.causal)):
        rows = html.split(f'<table id="{name}"')[1].split("</table>")[0].split("<tbody>")[1].count("<tr")
        assert rows == min(len(graph.edges), 200) > 0
    table = html.split('<table id="activity-table"')[1].split("</table>")[0]
    shown = min(30, report.activity.notna().any(axis=1).sum()) * len(report.comparisons)
    assert table.split("<tbody>")[1].count("<tr") == shown


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_words_and_lines_stand_out_from_white():
    """WCAG 2 AA: a contrast of 4.5 for words and what has their size."""
    css = (Path(page_module.__file__).parent / "templates/page.css").read_text()
    written = set(re.findall(r"(?:[{;]color|stroke|fill):(#[0-9a-f]{6})", css))
    assert len(written) > 2
    for colour in {*COLOURS, *written}:
        assert 1.05 / (luminance(colour) + 0.05) >= 4.5, colour


def test_scales_and_colours():
    scale = Scale.over([3.0, float("nan"), 7.0], 100.0, 20.0)
    assert [scale(v) for v in (3.0, 5.0, 7.0)] == [100.0, 60.0, 20.0]
    assert scale.ticks() == [3.0, 5.0, 7.0]
    assert Scale.over([-3.0, 4.0], 0.0, 1.0).ticks() == [-3.0, 0.0, 4.0]
    assert [diverging(v) for v in (0.0, 1.0, 2.0, -1.0)] == ["#ffffff", "#b34700", "#b34700", "#005aa0"]


DRIVE = """
<script>
const seen = [];
const column = (i) => [...document.querySelectorAll("#groups tbody tr")].filter((r) => !r.hidden)
  .map((r) => r.cells[i].dataset.value ?? r.cells[i].textContent);
const heads = [...document.querySelectorAll("#groups th")];
const at = heads.findIndex((h) => h.textContent === "pearson_delta");
heads[at].querySelector("button").click(); seen.push(column(at), heads[at].getAttribute("aria-sort"));
heads[at].querySelector("button").click(); seen.push(column(at), heads[at].getAttribute("aria-sort"));
const seen_figures = () => [...document.querySelectorAll("figure")]
  .filter((f) => f.getClientRects().length).length;
const find = document.getElementById("filter");
find.value = WANTED.toLowerCase(); find.dispatchEvent(new Event("input"));
seen.push(column(2), document.getElementById("count").textContent,
  seen_figures());
document.body.innerHTML = "<pre id=seen></pre>";
document.getElementById("seen").textContent = JSON.stringify(seen);
</script>
"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="apt install chromium to draw the page")
def test_a_browser_sorts_and_filters_without_an_error(report, tmp_path):
    wanted = report.groups["perturbation"].iloc[0]
    html = page(report).replace("</body>", DRIVE.replace("WANTED", json.dumps(wanted)) + "</body>")
    (tmp_path / "r.html").write_text(html)
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
         f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "r.html").as_uri()],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    text = re.search(r'<pre id="seen">(.*)</pre>', done.stdout)[1]
    up, way_up, down, way_down, names, count, figures = json.loads(text.replace("&amp;", "&"))
    values = report.groups["pearson_delta"].tolist()
    assert [float(v) for v in up] == sorted(values)
    assert [float(v) for v in down] == sorted(values, reverse=True)
    assert (way_up, way_down) == ("ascending", "descending")
    expected = report.groups["perturbation"].eq(wanted).sum()
    assert names == [wanted] * expected
    assert count == f"{expected} of {len(values)} groups"
    assert figures == expected
