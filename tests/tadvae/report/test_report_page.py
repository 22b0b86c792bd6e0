"""Pages and cards of made-up runs whose names would break them if anything were not escaped."""

import ast
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from markupsafe import Markup

from tadvae.evaluation.bootstrap import Interval
from tadvae.model.card import escape_markdown, model_card
from tadvae.report.charts import Box, Curve, Scale, curves, element
from tadvae.report.data import Comparison, Graph, MaskChange, Report
from tadvae.report.figures import arc_diagram
from tadvae.report.learned import first_edges
from tadvae.report.page import SECTIONS, page
from tadvae.report.rendering import Table
from tadvae.report.verdict import AgainstBaseline
from tadvae.settings.experiment import ExperimentConfig

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "{{ 7*7 }}{% raw %}{# x #}",
    "]]></title></style><b>&amp;{0}%s",
]
BAD = "".join(HOSTILE)
VOID = ("meta", "br", "input")


class Page(HTMLParser):
    """Tags, attribute values and words of a page; it must be well formed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.values, self.words = [], [], set(), [], ""
        self.scripts = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.values += [value for _, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("script", "style"):
            self.scripts.append(data)
        else:
            self.words += data


def report_of(name):
    """A report that has every section, with a name of the data wherever a name goes."""
    comparison = Comparison(
        name, name, name, [name, f"{name} 2"], np.array([0.5, -1.0]), np.array([0.4, -0.7]),
        np.array([0.1, 0.2]), 0.9,
    )  # fmt: skip
    edges = pd.DataFrame({"source": [0, 0], "target": [1, 2], "effect": [0.5, -0.25], "share": [1.0, 0.5]})
    edges["same_sign"] = 1.0
    graph = Graph([f"{k}: {name}" for k in range(3)], edges, seeds=2)
    rows = [("all", method, metric, 3, 0.5, 0.4, 0.6) for method in ("tadvae", name) for metric in
            ("rmse", "coverage", name)]  # fmt: skip
    groups = {"dataset": [name] * 2, "context": [name] * 2, "perturbation": [name, "b"]}
    mask = {"pathway": [name], "gene": [name], "change": ["added"], "gate": [0.9], "gate_at_start": [0.1]}
    return Report(
        name=name,
        about={name: name},
        commands=[f"tadvae train {name}"],
        config=f"name: {name}",
        datasets=pd.DataFrame({"dataset": [name, "dataset"], "contexts": [name, "b"], "cells": [1234, 5]}),
        shared_genes=np.array([[7, 3], [3, 9]]),
        shared_targets=np.array([[2, 1], [1, 4]]),
        curves={name: pd.DataFrame({"epoch": [0, 1, 2], name: [3.0, np.nan, 1.0]})},
        scores=pd.DataFrame(rows, columns=["category", "method", "metric", "n", "mean", "low", "high"]),
        against=[AgainstBaseline(name, "rmse", name, 0.5, 1.0, 3, Interval(0.5, 0.4, 0.6))],
        groups=pd.DataFrame({**groups, "category": [name, "x"], "cells": [5, 6], "rmse": [0.25, np.nan]}),
        comparisons=[comparison],
        asked=2,
        activity=pd.DataFrame(
            {f"control ({name})": [1.0, 2.0], f"{name} (x)": [0.5, np.nan]}, index=[name, "p"]
        ),
        factors=graph,
        causal=graph,
        mask=MaskChange(3, 4, pd.DataFrame(mask)),
        calibration=name,
        notes=[name],
    )


def test_names_are_words_of_the_report_and_never_markup():
    html = page(report_of(BAD))
    found, plain = Page(html), Page(page(report_of("name")))
    assert found.tags == plain.tags  # no name became an element
    assert found.attributes == plain.attributes
    assert found.scripts == plain.scripts
    assert html.count("<script") == 1
    assert "49" not in re.sub(r"\d\.\d+|\d{3,}", "", found.words)
    for word in HOSTILE:
        assert word in found.words
        assert word not in html or not set(word) & set("<>&\"'")  # braces have no meaning in HTML
    assert f"Run {BAD}" in found.words
    assert f"{BAD} · {BAD} · {BAD}" in found.values  # the key that the filter searches


def test_every_section_is_shown_or_left_out():
    full = report_of("name")
    titles = [section.title for section in SECTIONS]
    assert re.findall(r"<h2>(.*?)</h2>", page(full)) == titles
    bare = replace(
        full, curves={}, scores=None, against=[], groups=full.groups.head(0), comparisons=[], activity=None,
        causal="no <single> targets", mask=None, calibration=None, notes=[],
        factors=Graph(["a"], full.factors.edges.head(0)),
    )  # fmt: skip
    html = page(bare)
    assert re.findall(r"<h2>(.*?)</h2>", html) == [titles[i] for i in (1, 8, 9, 11)]
    assert "None: no &lt;single&gt; targets" in html
    assert "The same as a table" not in html


def test_stable_effects_are_shown_first():
    n = 40
    edges = pd.DataFrame({"source": 0, "target": np.arange(1, n + 1), "effect": np.linspace(-1.0, 1.0, n)})
    names = [str(k) for k in range(n + 1)]
    first, rule = first_edges(Graph(names, edges))
    assert first.edges["effect"].abs().min() >= edges["effect"].abs().nlargest(15).min()
    assert len(first.edges) == 15
    assert "not known which are stable" in rule
    share = np.where(np.arange(n) % 8 == 0, 1.0, 0.6)
    same = np.where(np.arange(n) == 8, 0.75, 1.0)  # one that all seeds have, but not with one sign
    stable, rule = first_edges(Graph(names, edges.assign(share=share, same_sign=same), seeds=4))
    assert sorted(stable.edges["target"]) == [1, 17, 25, 33]
    assert rule.startswith("4 of 40 effects are stable: at least 80% of the 4 seeds")
    assert "drawn" not in rule
    assert arc_diagram(stable, "a", "b").count("<circle") == 5  # no factor without an effect
    none, rule = first_edges(Graph(names, edges.assign(share=0.5, same_sign=1.0), seeds=2))
    assert none.edges.empty
    html = page(replace(report_of("name"), factors=Graph(names, edges.assign(share=0.5, same_sign=1.0), 2)))
    assert "0 of 40 effects are stable" in html
    assert html.count('aria-labelledby="factors') == 1  # the whole graph, to unfold


def test_cells_keep_all_digits_for_sorting():
    frame = pd.DataFrame({"a": [1 / 3, np.nan], "n": [12345, 6], "w": ["<", None], "b": [True, False]})
    table = Table.of(frame, "words", "name")
    assert [(c.text, c.value) for c in table.rows[0].cells] == [
        ("0.333", "0.3333333333333333"), ("12,345", "12345"), ("<", None), ("True", None),
    ]  # fmt: skip
    assert [(c.text, c.value) for c in table.rows[1].cells][::2] == [("", ""), ("", None)]
    assert [column.number for column in table.columns] == [True, True, False, False]


def test_elements_escape_what_they_are_given():
    made = element("text", BAD, element("title", BAD), None, x=1.234, data_name=BAD, class_=None)
    assert made.startswith('<text x="1.2" data-name="')
    assert made.count("<") == 4
    found = Page(made)
    assert found.words == BAD * 2
    assert found.values == ["1.2", BAD]
    assert element("b", Markup("<i></i>")) == "<b><i></i></b>"


def test_curves_leave_out_what_is_not_finite():
    points = [(0.0, 1.0), (1.0, float("nan")), (2.0, 3.0), (3.0, float("inf"))]
    drawn = curves([Curve(points, "a", "#000000")], Box(10, 110, 5, 55), "x", "y")
    assert 'points="10.0,55.0 76.7,5.0"' in drawn[-1]
    assert drawn[-1].count("<circle") == 2
    long = Curve([(float(i), float(i)) for i in range(30)], "a", "#000000")
    assert curves([long], Box(0, 1, 0, 1), "x", "y")[-1].count("<circle") == 1
    empty = curves([Curve([], "a", "#000000")], Box(0, 1, 0, 1), "x", "y")
    assert "<circle" not in empty[-1]


def test_a_logarithmic_scale():
    scale = Scale(1e-4, 1e-2, 300.0, 100.0, log=True)
    assert [scale(v) for v in (1e-4, 1e-3, 1e-2)] == pytest.approx([300.0, 200.0, 100.0])
    assert scale.ticks() == pytest.approx([1e-4, 1e-3, 1e-2])


NAMES = ["a|b", "new\nline", "`code`", "<script>", "quote\"'\\", "[x](y)", "{{ 7*7 }}", "```\nx", "\u2028|"]
NAMES += ["\x1b]0;x\x07", "ab\u202edc", "see https://x.org", "www.x.org", "@you", "<!-- x", "'''", "\udcff"]


@pytest.mark.parametrize("name", [*NAMES, " ".join(NAMES)])
def test_no_name_breaks_a_card(small_vocabulary, name):
    config = ExperimentConfig.load(None, [])
    plain = model_card(small_vocabulary, config)
    vocabulary = replace(
        small_vocabulary,
        datasets=[replace(entry, name=name) for entry in small_vocabulary.datasets],
        contexts=[replace(entry, name=name) for entry in small_vocabulary.contexts],
        targets=[replace(entry, name=name) for entry in small_vocabulary.targets],
        modalities=[name for _ in small_vocabulary.modalities],
    )
    card = model_card(vocabulary, config)
    assert len(card.splitlines()) == len(plain.splitlines())
    assert card.count("```") - name.count("```") * 3 == 2 or "```" not in name
    snippet = re.search(r"^```python\n(.*?)^```$", card, re.M | re.S)[1]
    call = ast.parse(snippet).body[-1].value
    assert [call.args[0].value, *(keyword.value.value for keyword in call.keywords)] == [name] * 3
    table = [line for line in card.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(vocabulary.datasets)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {8}
    outside = card.replace(snippet, "")
    assert "".join(card.split("\n")).isprintable()
    assert not re.search(r"https?://|www\.|(?<!\\)@", outside)
    assert not re.search(r"(?<!\\)[<>\[\]]", outside)
    assert not re.search(r"(?<!\\)`", "".join(table[2:]) + re.search(r"^Targets: .*$", card, re.M)[0])


def test_markdown_is_escaped():
    assert escape_markdown("a|b\n`c` <d> \\ [e](f) & g_h") == (
        "a\\|b \\`c\\` \\<d\\> \\\\ \\[e\\](f) &amp; g\\_h"
    )
