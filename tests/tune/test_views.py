"""Names, tables and lines that people read: never ambiguous, never cut, never wider than 100 columns."""

import io

import pytest
from rich.console import Console
from test_search import record

from tune.config import DEFAULT_SPACE, PAPER, SweepConfig
from tune.progress import duration, progress, seconds_left
from tune.records import TrialRecord
from tune.shown import short_name
from tune.space import SETTINGS
from tune.table import WIDTH, for_terminal, rows_of
from tune.views import views_of


def test_a_short_name_is_the_end_of_one_setting_only():
    shown = {key: short_name(key) for key in SETTINGS}
    assert len(set(shown.values())) == len(SETTINGS)
    assert all(key == name or key.endswith(f".{name}") for key, name in shown.items())
    assert shown["loss.alpha.high"] == "alpha.high"
    assert shown["loss.beta.high"] == "beta.high"
    assert shown["model.pathway.masking"] == "masking"
    assert shown["model.encoder.kind"] == "encoder.kind"
    assert shown["seed"] == "seed"


def swept(file, n=None):
    """A sweep of a packaged space whose trials are its first points, and one failure."""
    config = SweepConfig.load(file)
    records = []
    for number, values in enumerate(config.points()[:n]):
        curve = [{"epoch": 0, "cells_seen": 1e6, "loss": 1.0, "val_pearson_delta": 0.01 * number}]
        curve[0] |= {"val_l2": 1.0, "val_rmse": 1.0, "val_cosine_logfc": 1.0}
        record = TrialRecord(
            number=number, values=values, settings=config.settings(values), status="finished", curve=curve
        )
        records.append(record)
    records[-1] = records[-1].model_copy(update={"status": "failed", "curve": [], "reason": "no disk left"})
    return config, records


@pytest.mark.parametrize("file", [DEFAULT_SPACE, PAPER])
@pytest.mark.parametrize("width", [100, 80, 300])
def test_tables_fit_and_show_every_heading_and_trial(file, width):
    config, records = swept(file)
    rows = rows_of(records, config)
    screen = Console(file=io.StringIO(), width=width)
    for part in for_terminal(rows, config, "sweep", width):
        screen.print(part)
    lines = screen.file.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= min(width, WIDTH)
    headings = {word for line in lines for word in line.split()}
    views = views_of(rows, config)
    assert {*views.trials.columns, *views.details.columns, *views.groups.columns} <= headings
    assert "…" not in screen.file.getvalue()
    assert f"{len(records) - 1:04d}: no disk left" in lines
    shown = "d_embed/n_heads"
    assert set(views.trials[shown].dropna()) == {"64/4", "128/8", "256/16"}
    assert set(views.trials.columns) | set(views.details.columns) >= {
        "/".join([short_name(key)]) for key in config.parameters if "d_embed" not in key
    }


def test_a_table_that_goes_on_says_of_what():
    """Its title is on one line, and the settings stand before the figures again."""
    config, records = swept(PAPER)
    screen = Console(file=io.StringIO(), width=80)
    for part in for_terminal(rows_of(records, config), config, "sweep", 80):
        screen.print(part)
    lines = [line.strip() for line in screen.file.getvalue().splitlines()]
    title = "best of masking, d_embed/n_heads, encoder.kind by val_pearson_delta ↑"
    assert title in lines
    below = lines[lines.index(f"{title}, continued") :]
    assert next(line for line in below if line.startswith("masking")).split()[:3] == [
        "masking", "d_embed/n_heads", "encoder.kind"
    ]  # fmt: skip


def test_groups_are_the_papers_question_in_the_order_of_the_space():
    config, records = swept(PAPER)
    groups = views_of(rows_of(records, config), config).groups
    names = ["masking", "d_embed/n_heads", "encoder.kind"]
    assert len(groups) == 25
    assert groups[names].iloc[0].tolist() == ["linear", "–", "–"]
    assert groups[names].iloc[1].tolist() == ["hard", "64/4", "none"]
    assert groups[names].iloc[2].tolist() == ["hard", "64/4", "inducing"]
    assert groups["trial"].tolist() == list(range(25))
    assert groups["val_pearson_delta"].iloc[3] == pytest.approx(0.03)


def test_a_group_shows_its_best_trial():
    config, records = swept(DEFAULT_SPACE, 3)
    again = records[0].model_copy(update={"number": 9})
    better = [{**again.curve[0], "val_pearson_delta": 0.7}]
    records.append(again.model_copy(update={"curve": better}))
    groups = views_of(rows_of(records, config), config).groups
    first = groups.iloc[0]
    assert (first["trials"], first["finished"], first["trial"]) == (2, 2, 9)
    assert first["val_pearson_delta"] == 0.7


def test_progress_counts_and_estimates(small_space):
    config = SweepConfig.parse(small_space, "small space")  # 8 trials of 3 epochs
    assert "0 of 8 trials done, 0 running; no value yet; time left not known yet" in progress([], config, 2)
    running = record(0, 0.2, "running", epochs=1).model_copy(update={"seconds": 10.0})
    # one of three epochs in 10 s: 20 s to go, and 7 trials of 30 s, two at a time
    assert seconds_left([running], config, 2) == pytest.approx((20 + 7 * 30) / 2)
    ended = [
        record(1, 0.5).model_copy(update={"seconds": 40.0}),
        record(2, 0.1, "stopped", epochs=1).model_copy(update={"seconds": 20.0}),
        record(3, 0.1, "failed", epochs=1).model_copy(update={"seconds": 1.0}),
    ]
    assert seconds_left([running, *ended], config, 2) == pytest.approx((20 + 4 * 30) / 2)
    line = progress([running, *ended], config, 2)
    assert line == (
        "3 of 8 trials done (1 stopped, 1 failed), 1 running; best val_pearson_delta 0.5200 (trial 0001); "
        "about 70 s left"
    )
    # a single slow one decides
    slow = running.model_copy(update={"seconds": 400.0})
    assert seconds_left([slow, *ended], config.model_copy(update={"trials": 4}), 2) == pytest.approx(800)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "1 s"), (90, "90 s"), (91, "2 min"), (5400, "90 min"), (9000, "2.5 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
