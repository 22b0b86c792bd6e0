"""What a training worker shows on Ray's Prometheus ports; ``deploy/grafana.json`` draws it.

Ray puts ``ray_`` before every name.
"""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

GAUGES = {
    "tadvae_cells_per_second": "Cells of all workers in a second.",
    "tadvae_tokens_per_second": "Gene tokens of all workers in a second.",
    "tadvae_data_wait_share": "Share of a step's time that this worker waited for data.",
    "tadvae_loss": "The loss and each of its terms, mean over workers.",
    "tadvae_mmd": "The discrepancy of predicted and real cells, mean over workers.",
    "tadvae_epochs_done": "Epochs done, with the fraction of the current one.",
    "tadvae_workers": "Workers of the run.",
    "tadvae_first_batch_seconds": "From a worker's start to its first batch.",
}
COUNTERS = {
    "tadvae_cells_total": "Cells seen by all workers since the run was (re)started.",
    "tadvae_steps_total": "Steps made since the run was (re)started.",
    "tadvae_skipped_bags_total": "Bags that this worker left out, since all of their cells are held out.",
}
TAGS = ("run", "rank", "term")


class TrainingMetrics:
    """The gauges and counters of one worker; what is the same on all ranks comes from rank 0."""

    def __init__(self, run: str, rank: int) -> None:
        self._rank = rank
        self._skipped = 0
        self._gauges = {name: Gauge(name, text, TAGS) for name, text in GAUGES.items()}
        self._counters = {name: Counter(name, text, TAGS) for name, text in COUNTERS.items()}
        tags = {"run": run, "rank": str(rank), "term": ""}
        for metric in (*self._gauges.values(), *self._counters.values()):
            metric.set_default_tags(tags)

    def show(self, record: Mapping[str, Any], terms: Mapping[str, float], skipped: int) -> None:
        """Show one step, a record of :class:`pipelines.train.records.StepRecords`."""
        gauges, seconds = self._gauges, max(record["seconds"], 1e-9)
        gauges["tadvae_data_wait_share"].set(record["wait"] / seconds)
        if "first_batch" in record:
            gauges["tadvae_first_batch_seconds"].set(record["first_batch"])
        if skipped > self._skipped:
            self._counters["tadvae_skipped_bags_total"].inc(skipped - self._skipped)
            self._skipped = skipped
        if self._rank:
            return
        gauges["tadvae_cells_per_second"].set(record["cells"] / seconds)
        gauges["tadvae_tokens_per_second"].set(record["tokens"] / seconds)
        gauges["tadvae_epochs_done"].set(record["epochs_done"])
        gauges["tadvae_workers"].set(record["workers"])
        gauges["tadvae_mmd"].set(terms["mmd"])
        for term, value in terms.items():
            gauges["tadvae_loss"].set(value, {"term": term})
        self._counters["tadvae_steps_total"].inc()
        self._counters["tadvae_cells_total"].inc(record["cells"])
