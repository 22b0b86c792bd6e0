"""The sweep page of made-up trials, with names that would break it if anything were not escaped."""

import re
from html.parser import HTMLParser

import pytest

from tune.answer import answer, settings_of, spread_of_seeds
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
    assert "Best: " not in html


def seeded(values, metric="val_l2"):
    """A sweep whose trials have a masking, a seed and a score each; the lowest is best."""
    choice = list(dict.fromkeys(masking for masking, *_ in values))
    config = SweepConfig.parse(
        {
            "experiment": {"validation": {"every": 1}},
            "metric": metric,
            "parameters": {"model.pathway.masking": {"choice": choice}, "seed": {"choice": [0, 1, 2]}},
        },
        "test",
    )
    records = []
    for number, (masking, seed, value) in enumerate(values):
        settings = {"model.pathway.masking": masking, "seed": seed}
        curve = [{"epoch": 0, "cells_seen": 1.0, "loss": 1.0, metric: value}]
        records.append(
            TrialRecord(number=number, values=settings, settings=settings, status="finished", curve=curve)
        )
    return records, config


def test_the_answer_compares_the_difference_with_the_spread_of_seeds():
    values = [("hard", 0, 2.0), ("hard", 1, 2.2), ("linear", 0, 1.9), ("linear", 1, 2.5), ("none", 0, 9.0)]
    records, config = seeded(values)
    squares = 2 * 0.1**2 + 2 * 0.3**2  # of the two settings that have seeds, around their means
    spread = (squares / 2) ** 0.5
    assert spread_of_seeds(settings_of(records, config)) == pytest.approx(spread)
    assert answer(records, config) == (
        "Best: masking hard, with val_l2 2.1000 (mean of 2 seeds); the second, masking linear, has 2.2000 "
        "(mean of 2 seeds), and the difference of 0.1 is not larger than the spread between seeds (standard "
        f"deviation {spread:.2g}); best.yaml has the settings of the best single trial, 0002."
    )
    records, config = seeded([("hard", 0, 2.0), ("hard", 1, 2.2), ("linear", 0, 3.0)])
    assert "the difference of 0.9 is larger than the spread" in answer(records, config)
    records, config = seeded([("hard", 0, 0.0), ("linear", 0, 3.0)])
    assert "val_l2 0.0000 (trial 0000)" in answer(records, config)
    assert "may be chance" in answer(records, config)
    records, config = seeded([("hard", 0, 2.0), ("hard", 1, float("nan"))])
    assert answer(records, config).endswith("(trial 0000); nothing else has a value to compare it with.")


@pytest.mark.slow
def test_a_phone_shows_it_without_scrolling_sideways(on_a_phone):
    assert on_a_phone(rendered("a-name-without-any-space" * 4)) == []
