"""The console command ``tadvae``: words in, one call to the library or a pipeline, words out.

Bad input ends with one sentence on standard error and exit code 2.
"""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape

from pipelines.cli.datasets import datasets_app
from pipelines.cli.pathways import pathways_app
from pipelines.cli.show import out
from pipelines.cluster.ray_log import RAY_LOG
from tadvae import __version__
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location

app = typer.Typer(
    name="tadvae",
    help="One interpretable perturbation model over many single-cell screens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(pathways_app, name="pathways")
app.add_typer(datasets_app, name="datasets")

StoreArgument = Annotated[str, typer.Argument(metavar="STORE", help="A cell store: folder or URL.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder or URL.")]


def _presets(incomplete: str) -> list[str]:
    from tadvae.settings.presets import PRESETS

    return [name for name in PRESETS if name.startswith(incomplete)]


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print what Ray says; it otherwise goes to a log file.")
    ] = False,
) -> None:
    RAY_LOG.verbose = verbose
    if version:
        print(f"tadvae {__version__}")
        raise typer.Exit


@app.command()
def convert(
    spec: Annotated[str, typer.Argument(metavar="SPEC.yaml", help="Which files, which columns.")],
    out_: Annotated[str, typer.Option("--out", metavar="STORE", help="Where the store is written.")],
) -> None:
    """Convert many .h5ad files into one cell store.

    Example: tadvae convert screens.yaml --out store
    """
    from pipelines.convert import convert as run

    manifest = run(spec, out_)
    unknown = sum(dataset.n_unknown_genes for dataset in manifest.datasets)
    out.print(
        f"{out_}: {manifest.n_cells:,} cells of {len(manifest.datasets)} datasets, {manifest.n_genes:,} "
        f"genes ({unknown:,} identifiers unknown, kept under their own name); see `tadvae inspect {out_}`."
    )


@app.command()
def inspect(
    store: StoreArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verify: Annotated[bool, typer.Option(help="Compare every shard's checksum.")] = False,
) -> None:
    """Show a store's datasets, contexts, perturbations, genes and overlaps.

    Example: tadvae inspect store --verify
    """
    from pipelines.inspect import as_tables, describe

    about = describe(store, verify=verify)
    if as_json:
        print(json.dumps(about, indent=1))
        return
    for table in as_tables(about):
        out.print(table)


@app.command()
def simulate(
    out_: Annotated[str, typer.Option("--out", metavar="FOLDER", help="Where the screens are written.")],
    seed: Annotated[int, typer.Option(help="Another seed, other screens.")] = 0,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the simulation.")
    ] = None,
) -> None:
    """Write small screens with a known causal truth, their spec and their pathways.

    Example: tadvae simulate --out demo
    """
    from tadvae.simulation.files import simulate_to
    from tadvae.simulation.simulate import SimulationConfig

    config = SimulationConfig.load(None, [f"seed={seed}", *(settings or [])])
    spec = simulate_to(Path(out_), config)
    out.print(f"{spec}: convert it with `tadvae convert {spec} --out STORE`.")


@app.command()
def train(
    store: StoreArgument,
    out_: Annotated[str, typer.Option("--out", metavar="RUN", help="The run's folder or URL.")],
    config: Annotated[str | None, typer.Option(metavar="F.yaml", help="Settings; see docs.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting, such as train.epochs=1."),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A whole model to start from: dvae, sena, …; see docs/model.md.",
            autocompletion=_presets,
        ),
    ] = None,
    workers: Annotated[
        str, typer.Option(metavar="N|MIN:MAX", help="Ray Train workers, or the fewest and the most.")
    ] = "1",
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a worker.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    seeds: Annotated[
        int, typer.Option(min=1, help="Members of an ensemble, one CPU each; with intervals.")
    ] = 1,
    calibration_folds: Annotated[
        int, typer.Option(min=0, help="Folds of training perturbations that intervals are calibrated on.")
    ] = 4,
) -> None:
    """Train one model on a whole store, or with --seeds an ensemble of them.

    Example: tadvae train store --out run --set pathways.file=go.gmt --workers 2
    """
    from tadvae.model.run_folder import RunFolder
    from tadvae.settings.experiment import ExperimentConfig
    from tadvae.settings.presets import settings_of

    if resume and (config or settings or preset):
        raise UserError(
            "--resume goes on with the run's own settings; leave out --config, --preset and --set."
        )
    count = _workers(workers)
    base = None if preset is None else settings_of(preset)
    experiment = None if resume else ExperimentConfig.load(config, settings or [], base)
    if seeds > 1 or (resume and RunFolder(out_).is_ensemble):
        if gpu or count != 1:
            raise UserError("--seeds trains each member on one CPU; leave out --gpu and --workers.")
        if calibration_folds == 1:
            raise UserError("--calibration-folds 1: a fold needs others to train on; give 0, or 2 and more.")
        from pipelines.train.ensemble import train_ensemble

        train_ensemble(
            store, out_, experiment, seeds=seeds, calibration_folds=calibration_folds, resume=resume
        )
    else:
        from pipelines.train.train import train as run

        run(store, out_, experiment, workers=count, gpu=gpu, resume=resume)
    out.print(f"{out_}: done; compare it with arithmetic: `tadvae evaluate {out_}`.")


def _workers(text: str) -> int | tuple[int, int]:
    """``4``, or the range ``1:4``."""
    numbers = [int(part) if part.isascii() and part.isdecimal() else 0 for part in text.split(":")]
    if len(numbers) > 2 or not 1 <= numbers[0] <= numbers[-1]:
        raise UserError(f"--workers {text}: expected a number from 1 on, or a range such as 1:4.")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


@app.command()
def evaluate(
    run: RunArgument,
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only held-out groups of this kind, such as combo_seen2."),
    ] = None,
    json_: Annotated[str | None, typer.Option("--json", metavar="FILE", help="Also write JSON.")] = None,
    store: Annotated[str | None, typer.Option(help="The run's store, if it has moved.")] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN2", help="Another run of the same split, in the same table; repeatable."),
    ] = None,
) -> None:
    """Compare a run, or an ensemble, with arithmetic on what it has not seen.

    Example: tadvae evaluate run --against other_run
    """
    from pipelines.evaluate import as_json, evaluate_run, tables
    from tadvae.model.run_folder import RunFolder

    scores = evaluate_run(run, split, store, against or [])
    for table in tables(scores):
        out.print(table)
    for note in scores.notes:
        out.print(escape(note))
    for group, reason in scores.abstained.items():
        out.print(escape(f"no answer of the model's own for {group}: {reason}"))
    if json_ is not None:
        Location.of(json_).write_text(json.dumps(as_json(scores), indent=1))
    out.print(f"all scores: {RunFolder(run).scores_place(split or 'all')}")


@app.command()
def report(
    run: RunArgument,
    out_: Annotated[str, typer.Option("--out", metavar="FILE.html", help="The page.")],
    store: Annotated[str | None, typer.Option(help="The run's store, if it has moved.")] = None,
) -> None:
    """Write one page about a run: its data, learning curves, scores, predictions, factors and mask.

    A run that was not evaluated is evaluated first.

    Example: tadvae report run --out report.html
    """
    from pipelines.report import report_run

    found = report_run(run, out_, store)
    for note in found.notes:
        out.print(escape(note))
    out.print(
        f"{out_}: {len(found.comparisons)} of {found.asked} held-out groups drawn; open it in a browser."
    )


@app.command()
def predict(
    run: RunArgument,
    target: Annotated[str, typer.Option(metavar="A+B", help="What is perturbed.")],
    context: Annotated[str, typer.Option(metavar="C", help="In which context.")],
    out_: Annotated[str, typer.Option("--out", metavar="FILE.h5ad", help="Where predicted cells go.")],
    controls: Annotated[
        str | None, typer.Option(metavar="FILE.h5ad", help="Your own control cells to start from.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Whose context, or whose way of perturbing.")] = None,
    values: Annotated[Literal["counts", "log1p"], typer.Option(help="What --controls holds.")] = "counts",
) -> None:
    """Predict cells under a perturbation, or several at once.

    Example: tadvae predict run --target KLF1+MAP2K6 --context k562 --out predicted.h5ad
    """
    from pipelines.predict import predict_to

    adata = predict_to(run, target, context, out_, controls_path=controls, dataset=dataset, values=values)
    about = adata.uns["tadvae"]
    change = (adata.var["predicted_mean"] - adata.var["control_mean"]).sort_values()
    up = ", ".join(f"{gene} {value:+.2f}" for gene, value in change.iloc[::-1].head(5).items())
    down = ", ".join(f"{gene} {value:+.2f}" for gene, value in change.head(5).items())
    out.print(
        f"{out_}: {adata.n_obs} cells × {adata.n_vars} genes of {about['perturbation']} in "
        f"{about['context']}, from {about['started_from']}; up: {up}; down: {down}."
    )


@app.command()
def doctor(
    workers: Annotated[int, typer.Option(min=1, help="Workers that a run would have.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="One GPU a worker.")] = False,
    storage: Annotated[
        str | None, typer.Option(metavar="PLACE", envvar="TADVAE_STORAGE", help="Where stores and runs lie.")
    ] = None,
) -> None:
    """Find what would stop a run on this cluster; exit code 2 if something must be mended.

    Example: tadvae doctor --workers 4 --storage s3://lab
    """
    from pipelines.cluster.doctor import examine

    wrong = 0
    for finding in examine(workers, gpu, storage):
        print(finding, flush=True)
        wrong += finding.mend is not None
    if wrong:
        raise UserError(f"{wrong} of these must be mended before a run.")


def main(arguments: list[str] | None = None) -> None:
    """Run the command; the only place where a UserError becomes words and exit code 2."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    words = sys.argv[1:] if arguments is None else arguments
    if "--verbose" in words:  # before the command or after it
        words = ["--verbose", *(word for word in words if word != "--verbose")]
    try:
        app(words, prog_name="tadvae")
    except UserError as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        print(f"tadvae: {error}{notes}", file=sys.stderr)
        sys.exit(2)
