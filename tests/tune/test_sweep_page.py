"""The sweep page of made-up trials, with names that would break it if anything were not escaped."""

import re
from html.parser import HTMLParser

from tune.config import SweepConfig
from tune.page import page
from tune.records import TrialRecord
from tune.table import rows_of

BAD = "<script>alert(1)</script>\"'><b>{{ 7*7 }}]]></title>"


class Page(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.tags, self.words, self.values = [], "", []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [value for _, value in attrs]

    def handle_data(self, data):
        self.words += data


def config_of(name):
    return SweepConfig.parse(
        {
            "experiment": {"validation": {"every": 1}},
            "parameters": {
                "pathways.file": {"choice": [name, "other"]},
                "train.learning_rate": {"loguniform": [1e-4, 1e-2]},
                "model.causal.n_factors": {"integer": [8, 64], "when": {"pathways.file": ["other"]}},
            },
        },
        "test",
    )


def records_of(name):
    """Four trials: finished, stopped, failed before its first validation, and one that diverged."""
    found = []
    for number, status in enumerate(("finished", "stopped", "failed", "stopped")):
        values = {
            "pathways.file": name if number % 2 else "other",
            "train.learning_rate": 10.0 ** -(2 + number / 2),
        }
        if number % 2 == 0:
            values["model.causal.n_factors"] = 8 + number
        curve = [
            {
                "epoch": e,
                "cells_seen": 100.0 * (e + 1),
                "loss": 1.0,
                "val_pearson_delta": 0.1 * e + number / 10,
            }
            for e in range(0 if status == "failed" else 3)
        ]
        if number == 3:
            curve[-1]["val_pearson_delta"] = float("nan")
        record = {"number": number, "values": values, "settings": values, "status": status, "reason": name}
        found.append(TrialRecord(**record, curve=curve))
    return found


def rendered(name):
    config, records = config_of(name), records_of(name)
    return page(name, config, records, rows_of(records, config), f"file: {name}\n")


def test_names_are_words_of_the_sweep_and_never_markup():
    html = rendered(BAD)
    found, plain = Page(html), Page(rendered("name"))
    assert found.tags == plain.tags
    assert "<script" not in html
    assert BAD not in html
    assert found.words.count(BAD) > 5
    assert f"Sweep {BAD}" in found.words
    assert f"file: {BAD}" in found.words


def test_trials_are_lines_and_rows():
    html = rendered("name")
    lines = re.findall(r'<polyline class="trial" data-trial="(\d)"( stroke-dasharray="6 4")?', html)
    assert [(n, bool(dash)) for n, dash in lines] == [("0", False), ("1", True), ("3", True)] * 2
    assert html.count('<tr class="best">') == 1
    heights = re.findall(r'data-trial="0" points="([^"]+)"', html)[1].split()
    assert [float(point.split(",")[1]) for point in heights] == [322.0, 254.5, 187.0]
    ids = re.findall(r'id="([\w-]+)"', html)
    assert len(ids) == len(set(ids))
    for names in re.findall(r'aria-labelledby="([^"]+)"', html):
        assert set(names.split()) <= set(ids)


def test_a_sweep_without_a_value_says_so():
    config = config_of("name")
    records = [r for r in records_of("name") if r.status == "failed"]
    html = page("sweep", config, records, rows_of(records, config), "")
    assert "No trial has a value yet." in html
    assert "Too few trials" in html
    assert "Best: trial" not in html
