"""What a run shows while it works: Prometheus, TensorBoard, the Ray dashboard."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from cluster.running import ROOT, log_records, wait_for
from pipelines.train.metrics import COUNTERS, GAUGES

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1200)]
RARE = {"tadvae_skipped_bags_total"}  # appears when a bag is skipped, which this store gives no cause for


def samples(text: str, run: str) -> dict[tuple, float]:
    """(name, rank, term) → value, of one run."""
    found = {}
    for line in text.splitlines():
        match = re.match(r"ray_(tadvae_\w+)\{(.*)\} (\S+)$", line)
        if match:
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            if labels["run"] == run:
                found[match[1], labels["rank"], labels["term"]] = float(match[3])
    return found


@pytest.fixture(scope="module")
def watched(head, shared, local_store, tmp_path_factory) -> Iterator[tuple[Path, str]]:
    """A job that trains as long as it is looked at: its run's folder and its name."""
    run = tmp_path_factory.mktemp("observability") / "watched"
    job = head.driver.run(
        "ray job submit --no-wait --working-dir . -- "
        f"python -m pipelines train {local_store} --out {run} --workers 2 --config {shared}/experiment.yaml "
        "--set train.epochs=5000"
    )
    name = re.search(r"raysubmit_\w+", job).group()
    yield run, name
    head.driver.run(["ray", "job", "stop", name])


def test_metrics_on_the_prometheus_port(head, watched):
    run, job = watched

    def shown() -> dict | None:
        found = samples(requests.get(head.metrics, timeout=20).text, "watched")
        names = {name for name, _, _ in found}
        both = {rank for name, rank, _ in found if name == "tadvae_first_batch_seconds"} == {"0", "1"}
        return found if both and {*GAUGES, *COUNTERS} - RARE <= names else None

    found = wait_for(shown, 500, lambda: head.driver.run(["ray", "job", "logs", job]))
    records = log_records(run)
    terms = {term for name, _, term in found if name == "tadvae_loss"}
    assert {"loss", "reconstruction", "mmd", "kl"} <= terms <= set(records[0])
    for rank in ("0", "1"):
        assert 0 <= found["tadvae_data_wait_share", rank, ""] <= 1
        assert found["tadvae_first_batch_seconds", rank, ""] > 0
    assert found["tadvae_workers", "0", ""] == 2
    steps = int(found["tadvae_steps_total", "0", ""])
    assert found["tadvae_cells_total", "0", ""] == sum(r["cells"] for r in records[:steps]) or steps > len(
        records
    )
    assert found["tadvae_cells_per_second", "0", ""] > 0
    assert found["tadvae_tokens_per_second", "0", ""] > found["tadvae_cells_per_second", "0", ""]


def test_tensorboard_shows_the_log(whole):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    records = log_records(whole)
    for name in ("loss", "mmd", "kl", "cells", "tokens"):
        scalars = events.Scalars(f"train/{name}")
        assert [s.step for s in scalars] == [r["step"] for r in records]
        assert [s.value for s in scalars] == pytest.approx([r[name] for r in records], rel=1e-6)
    assert {"train/wait_share", "train/cells_per_second"} <= set(events.Tags()["scalars"])


def test_the_dashboard_shows_the_job_and_the_run(head, watched, tmp_path):
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("no Chromium here (Debian: chromium, chromium-driver)")
    run, name = watched
    wait_for(lambda: list((run / "log").glob("steps-*")) if run.exists() else None, 300, lambda: name)
    script = [
        "python",
        str(ROOT / "scripts/dashboard_screenshot.py"),
        head.dashboard,
        str(tmp_path / "d.png"),
    ]
    printed = head.driver.run([*script, "--job", name])
    assert f"jobs: shows {name}" in printed
    assert "actors: shows the run's controller and its workers" in printed
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
