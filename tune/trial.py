"""One trial: a Ray Train run inside a driver function of Ray Tune."""

from typing import Any

import ray.train
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback

from pipelines.train.train import train
from tadvae.model.run_folder import RunFolder
from tadvae.settings.experiment import ExperimentConfig


class ReportValidations(TuneReportCallback):
    """Hand Ray Tune the reports that carry the metric: its scheduler and its search need nothing else."""

    def __init__(self, metric: str) -> None:
        super().__init__()
        self._metric = metric

    def after_report(
        self,
        run_context: Any,
        metrics: list[dict[str, Any]],
        checkpoint: ray.train.Checkpoint | None,
    ) -> None:
        """Called on Ray Train's controller; rank 0 has validated."""
        if self._metric in metrics[0]:
            super().after_report(run_context, metrics, None)


def run_trial(config: dict[str, Any], store: str, folder: str, metric: str, workers: int) -> None:
    """What Ray Tune calls; a trial whose run exists goes on where that is, a finished one only reports.

    Parameters
    ----------
    config
        ``number`` and ``experiment``, the latter as YAML.
    folder
        Path or URL of the sweep's trials.
    """
    place = beneath(folder, f"{config['number']:04d}/run")
    run = RunFolder(place)
    begun = run.is_begun
    if begun:
        for record in run.steps():
            if metric in record:
                ray.tune.report(record)
    else:
        run.place.delete()
    if not run.is_finished:
        experiment = ExperimentConfig.load_text(config["experiment"], "the trial's settings")
        train(
            store,
            place,
            None if begun else experiment,
            workers=workers,
            resume=begun,
            callbacks=[ReportValidations(metric)],
            progress=False,
        )


def beneath(place: str, name: str) -> str:
    """A path or URL one level down; what a URL asks of its storage (``?region=…``) stays at its end."""
    folder, mark, query = place.partition("?") if "://" in place else (place, "", "")
    return f"{folder.rstrip('/')}/{name}{mark}{query}"
