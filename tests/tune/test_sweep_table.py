"""The table, the page and the best settings of a sweep on Ray have the figures of its runs."""

import csv
import shutil
import subprocess
from html.parser import HTMLParser

import pandas as pd
import pytest
from sweep_runs import log, main_exits

from pipelines.train.train import train
from tadvae.base.filesystem import Location
from tadvae.settings.experiment import ExperimentConfig
from tune.records import best_of, read_records, read_sweep


class Page(HTMLParser):
    """What a page holds, and what it would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.lines: list[dict] = []
        self.titled: list[str] = []
        self.cells: list[list[str]] = []
        self.words = ""

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.loads += [v for k, v in attrs if k in ("src", "href", "srcset", "data") and v]
        if tag == "polyline":
            self.lines.append(values)
        if tag == "svg":
            assert values["role"] == "img"
            self.titled.append(values["aria-labelledby"])
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data


@pytest.mark.slow
def test_the_report_has_the_figures_of_the_raw_results(swept, tmp_path, capsys):
    main_exits(["tune", "table", str(swept), "--out", str(tmp_path / "report")])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown  # no colours in a log
    config, records = read_sweep(Location.of(swept)), read_records(Location.of(swept))
    raw = {}
    for record in records:  # from the runs' own logs, not from the records
        steps = log(swept / f"trials/{record.number:04d}/run")
        raw[record.number] = [r["val_pearson_delta"] for r in steps if "val_pearson_delta" in r][
            : len(record.curve)
        ]

    table = pd.read_parquet(tmp_path / "report/trials.parquet")
    assert dict(zip(table["trial"], table["val_pearson_delta"], strict=True)) == {
        k: v[-1] for k, v in raw.items()
    }
    finished = {r.number for r in records if r.status == "finished"}
    order = sorted(raw, key=lambda n: (n not in finished, -raw[n][-1]))
    assert table["trial"].tolist() == order
    assert table["rank"].tolist() == list(range(1, 9))
    assert dict(zip(table["trial"], table["reason"], strict=True)) == {r.number: r.reason for r in records}
    assert table.set_index("trial")["epochs"].to_dict() == {k: len(v) for k, v in raw.items()}
    linear = table["model.pathway.masking"] == "linear"
    assert table.loc[linear, "model.pathway.d_embed"].isna().all()
    assert (
        table.loc[~linear, "model.pathway.d_embed"] == 16 * table.loc[~linear, "model.pathway.n_heads"]
    ).all()
    with (tmp_path / "report/trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(r["trial"]) for r in rows] == order
    assert [float(r["val_pearson_delta"]) for r in rows] == [raw[n][-1] for n in order]
    markdown = (tmp_path / "report/trials.md").read_text().splitlines()
    assert len(markdown) == 10
    assert {line.count("|") for line in markdown} == {len(table.columns) + 1}
    for record in records:
        assert f"{raw[record.number][-1]:.3g}" in shown

    html = (tmp_path / "report/sweep.html").read_text()
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    assert all(each.startswith("data:text/csv;") for each in page.loads)
    assert "http" not in html.replace("http://www.w3.org", "")
    assert len(page.titled) == 3
    assert all(f'id="{name}"' in html for names in page.titled for name in names.split())
    rows = [cells[1] for cells in page.cells if cells[0] in ("rank", *map(str, range(1, 9)))]
    assert rows == ["trial", *(str(n) for n in order)] * 2  # settings and results, then the other scores
    assert f"val_pearson_delta {raw[order[0]][-1]:.4f} (trial {order[0]:04d}); the second" in page.words
    assert sorted(int(line["data-trial"]) for line in page.lines) == sorted([*range(8), *range(8)])
    # the learning curve's points, back from pixels to the metric
    values = [v for curve in raw.values() for v in curve]
    low, high = min(values), max(values)
    curves = {int(line["data-trial"]): line["points"].split() for line in page.lines[8:]}
    for number, curve in raw.items():
        heights = [(322 - float(point.split(",")[1])) / 270 for point in curves[number]]
        assert [low + h * (high - low) for h in heights] == pytest.approx(curve, abs=(high - low) / 500)
    dashed = {int(line["data-trial"]) for line in page.lines if "stroke-dasharray" in line}
    assert dashed == set(raw) - finished
    assert best_of(records, config).number == order[0]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="apt install chromium to draw the page")
def test_a_browser_draws_the_page(swept, tmp_path):
    main_exits(["tune", "table", str(swept), "--out", str(tmp_path / "r"), "--format", "html"])
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["sweep.html"]
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    url = (tmp_path / "r/sweep.html").as_uri()
    dom = subprocess.run(
        [*command, "--dump-dom", url], capture_output=True, text=True, timeout=300, check=True
    )
    assert dom.stdout.count("<polyline") == 16
    assert "Best settings" in dom.stdout


@pytest.mark.slow
def test_train_takes_the_best_settings(store, swept, tmp_path):
    main_exits(["tune", "table", str(swept), "--out", str(tmp_path / "r"), "--format", "yaml"])
    assert (tmp_path / "r/best.yaml").read_text() == (swept / "best.yaml").read_text()
    config = ExperimentConfig.load(tmp_path / "r/best.yaml", ["train.epochs=1"])
    best = best_of(read_records(Location.of(swept)), read_sweep(Location.of(swept)))
    assert config.train.learning_rate == best.values["train.learning_rate"]
    assert config.validation.every is None
    train(str(store.folder), str(tmp_path / "run"), config)
    groups = pd.read_parquet(tmp_path / "run/split.parquet")
    assert "validation" not in set(groups["part"])
    tuned = pd.read_parquet(swept / f"trials/{best.number:04d}/run/split.parquet")
    assert (groups["part"] == "test").equals(tuned["part"] == "test")
