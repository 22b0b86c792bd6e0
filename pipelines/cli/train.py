"""``tadvae train``."""

from typing import Annotated

import typer

from pipelines.cli.arguments import StoreArgument
from pipelines.cli.show import out
from tadvae.base.errors import UserError


def _presets(incomplete: str) -> list[str]:
    from tadvae.settings.presets import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


def train(
    store: StoreArgument,
    out_: Annotated[str, typer.Option("--out", metavar="RUN", help="Folder or URL of the run.")],
    config: Annotated[
        str | None, typer.Option(metavar="F.yaml", help="File of settings; see the docs.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change one setting, for example train.epochs=1; may be repeated.",
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Settings of a published model to start from: dvae, sena, …; see docs/model.md.",
            autocompletion=_presets,
        ),
    ] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Run or model to fine-tune: it learns the new store and keeps what it knows; see "
            "docs/fine-tuning.md.",
        ),
    ] = None,
    workers: Annotated[
        str,
        typer.Option(
            metavar="N|MIN:MAX", help="Number of Ray Train workers, or its smallest and largest value."
        ),
    ] = "1",
    gpu: Annotated[bool, typer.Option("--gpu", help="Use one GPU per worker.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    seeds: Annotated[
        int,
        typer.Option(
            min=1,
            help="Train an ensemble of this size, with prediction intervals; one CPU per member, with --gpu "
            "one GPU.",
        ),
    ] = 1,
    calibration_folds: Annotated[
        int,
        typer.Option(
            min=0, help="Folds of training perturbations for calibrating the intervals; 0: no intervals."
        ),
    ] = 4,
) -> None:
    """Train one model on all datasets of a store, or with --seeds an ensemble of models.

    Example: tadvae train store --out run --set pathways.file=go.gmt --workers 2

    Fine-tuning: tadvae train new_store --from run --out fine_tuned
    """
    from tadvae.data.splits import nothing_to_evaluate
    from tadvae.model.run_folder import RunFolder
    from tadvae.settings.experiment import ExperimentConfig
    from tadvae.settings.presets import settings_of

    if resume and (config or settings or preset or from_):
        raise UserError(
            "--resume continues with the run's own settings; leave out --config, --preset, --from and --set."
        )
    if preset and from_:
        raise UserError("--from keeps the network of the model it begins with; leave out --preset.")
    count = _workers(workers)
    base = None if preset is None else settings_of(preset)
    if from_ is not None:
        from tadvae.training.pretrained import Pretrained

        base = Pretrained.load(from_).settings()
    experiment = None if resume else ExperimentConfig.load(config, settings or [], base)
    if seeds > 1 or (resume and RunFolder(out_).is_ensemble):
        if count != 1:
            raise UserError("--seeds trains each member in one process; leave out --workers.")
        if calibration_folds == 1:
            raise UserError("--calibration-folds 1: a fold needs others to train on; give 0, or 2 and more.")
        from pipelines.train.ensemble import train_ensemble

        train_ensemble(
            store,
            out_,
            experiment,
            seeds=seeds,
            calibration_folds=calibration_folds,
            gpu=gpu,
            resume=resume,
        )
    else:
        from pipelines.train.train import train as run

        run(store, out_, experiment, workers=count, gpu=gpu, resume=resume)
    reason = nothing_to_evaluate(next(iter(RunFolder(out_).members().values())).split())
    out.print(f"{out_}: done; {reason or f'compare it with baselines: `tadvae evaluate {out_}`'}.")


def _workers(text: str) -> int | tuple[int, int]:
    """Parse a number of workers, ``4``, or a range, ``1:4``."""
    numbers = [int(part) if part.isascii() and part.isdecimal() else 0 for part in text.split(":")]
    if len(numbers) > 2 or not 1 <= numbers[0] <= numbers[-1]:
        raise UserError(f"--workers {text}: expected a number from 1 on, or a range such as 1:4.")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])
