"""One trial, in a function that Ray Tune calls.

With one worker it trains in the process of that function, so that a trial starts one process; with several
it is a Ray Train run, which starts its own.
"""

from typing import Any

import ray.train
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback

from pipelines.train.alone import train_alone
from pipelines.train.train import train
from tadvae.data.store_of_model import open_store
from tadvae.data.vocabulary import Vocabulary
from tadvae.model.device import chosen_device
from tadvae.model.run_folder import RunFolder
from tadvae.settings.experiment import ExperimentConfig
from tadvae.store.reader import Store
from tadvae.training.begin_run import begin_run
from tadvae.training.prepare import prepare_training


class ReportValidations(TuneReportCallback):
    """Pass the reports that contain the metric to Ray Tune; its scheduler and search need no others."""

    def __init__(self, metric: str) -> None:
        super().__init__()
        self._metric = metric

    def after_report(
        self,
        run_context: Any,
        metrics: list[dict[str, Any]],
        checkpoint: ray.train.Checkpoint | None,
    ) -> None:
        """Called by Ray Train's controller after a report; the validation is in the report of rank 0."""
        if self._metric in metrics[0]:
            super().after_report(run_context, metrics, None)


def run_trial(
    config: dict[str, Any], store: str, folder: str, metric: str, workers: int, gpu: bool = False
) -> None:
    """The function that Ray Tune calls: start a run, resume an existing one, or report a finished one.

    Parameters
    ----------
    config
        ``number`` of the trial, and its ``experiment`` as YAML.
    folder
        Path or URL of the folder of trials.
    gpu
        Whether each worker has a GPU, or a part of one.
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
    if run.is_finished:
        return
    device = chosen_device(gpu) if workers == 1 else None
    experiment = ExperimentConfig.load_text(config["experiment"], "the trial's settings")
    if workers == 1:
        if not begun:
            prepared = prepare_training(Store.open(store), experiment)
            begin_run(run, store, experiment, prepared, workers=1, gpu=gpu)
        opened = open_store(store, Vocabulary.load(run.model))

        def report(record: dict[str, Any]) -> None:
            if metric in record:
                ray.tune.report(record)

        train_alone(run, opened, report, device)
        return
    train(
        store,
        place,
        None if begun else experiment,
        workers=workers,
        gpu=gpu,
        resume=begun,
        callbacks=[ReportValidations(metric)],
        progress=False,
        of_sweep=True,
    )


def beneath(place: str, name: str) -> str:
    """A path or URL one level deeper; a query of the URL (``?region=…``) stays at its end."""
    folder, mark, query = place.partition("?") if "://" in place else (place, "", "")
    return f"{folder.rstrip('/')}/{name}{mark}{query}"
