"""The console command ``tadvae``: reads options, calls the library or a pipeline, and prints the result.

Bad input ends with one sentence on standard error and exit code 2.
"""

import io
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from pipelines.cli.arguments import OnGpu, RunArgument, StoreArgument
from pipelines.cli.datasets import datasets_app
from pipelines.cli.init import init
from pipelines.cli.pathways import pathways_app
from pipelines.cli.predictions import embed, predict, rank
from pipelines.cli.show import out
from pipelines.cli.train import train
from pipelines.cluster.ray_log import RAY_LOG
from pipelines.cluster.signals import stoppable
from tadvae import __version__
from tadvae.base.allocator import keep_freed_memory
from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.base.terminal import print_text, visible


class _Commands(typer.core.TyperGroup):
    """Ends a command that is stopped by a signal, before Typer makes another exit code of it."""

    def invoke(self, ctx: Any) -> Any:
        with stoppable():
            return super().invoke(ctx)


app = typer.Typer(
    name="tadvae",
    cls=_Commands,
    help="Train one interpretable perturbation model on many single-cell screens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(pathways_app, name="pathways")
app.add_typer(datasets_app, name="datasets")


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Print what Ray says; it otherwise goes to a log file.")
    ] = False,
) -> None:
    RAY_LOG.verbose = verbose
    if version:
        print_text(f"tadvae {__version__}")
        raise typer.Exit


app.command()(init)


@app.command()
def convert(
    spec: Annotated[
        str, typer.Argument(metavar="SPEC.yaml", help="Spec: the files, and the meaning of their columns.")
    ],
    out_: Annotated[str, typer.Option("--out", metavar="STORE", help="New folder or URL of the store.")],
) -> None:
    """Convert many .h5ad files or .zarr folders into one cell store.

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
    verify: Annotated[bool, typer.Option(help="Compare the checksum of every file of cells.")] = False,
    qc: Annotated[
        bool,
        typer.Option(
            "--qc",
            help="Check the screens: targets, escaped cells, guides, contexts without controls, batches.",
        ),
    ] = False,
    out_: Annotated[
        str | None, typer.Option("--out", metavar="FILE.html", help="With --qc, a page to write.")
    ] = None,
    tables: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="With --qc, new folder for its tables as CSV, one of all cells."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="With --qc, change one of its thresholds; may be repeated."
        ),
    ] = None,
) -> None:
    """Show the datasets, contexts, perturbations, genes and overlaps of a store, or check its screens.

    Example: tadvae inspect store --qc --out quality.html
    """
    if qc:
        _quality_control(store, as_json, verify, out_, tables, settings or [])
        return
    if out_ is not None or tables is not None or settings:
        raise UserError("--out, --tables and --set belong to the quality control; add --qc.")
    from pipelines.inspect import as_tables, describe

    about = describe(store, verify=verify)
    if as_json:
        print_text(json.dumps(about, indent=1))
        return
    for table in as_tables(about):
        out.print(table)


def _quality_control(
    store: str, as_json: bool, verify: bool, page: str | None, folder: str | None, settings: list[str]
) -> None:
    from pipelines.inspect import describe
    from pipelines.quality_control import as_json as plain
    from pipelines.quality_control import as_tables, quality_control
    from tadvae.report.screen_qc_page import answer, findings
    from tadvae.screen_qc.thresholds import QcConfig

    config = QcConfig.load(None, settings)
    if verify:
        describe(store, verify=True)
    found = quality_control(store, config, page, folder)
    if as_json:
        print_text(json.dumps(plain(found, config), indent=1))
        return
    for table in as_tables(found):
        out.print(table)
    for finding in findings(found, config):
        out.print(finding)
    out.print(answer(found))


@app.command()
def simulate(
    out_: Annotated[str, typer.Option("--out", metavar="FOLDER", help="New folder for the screens.")],
    seed: Annotated[int, typer.Option(help="Seed; each gives other screens.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change one setting of the simulation; may be repeated."
        ),
    ] = None,
) -> None:
    """Write small simulated screens with known causal effects, their spec and their pathways.

    Example: tadvae simulate --out demo
    """
    from tadvae.simulation.config import SimulationConfig
    from tadvae.simulation.files import simulate_to

    config = SimulationConfig.load(None, [f"seed={seed}", *(settings or [])])
    spec = simulate_to(Path(out_), config)
    out.print(f"{spec}: convert it with `tadvae convert {spec} --out STORE`.")


app.command()(train)


@app.command()
def evaluate(
    run: RunArgument,
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Only held-out groups of this category, such as combo_seen2."),
    ] = None,
    json_: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help="File for the scores as JSON.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="The run's store, if it has moved.")] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN2", help="Another run of the same split to compare with; may be repeated."),
    ] = None,
    cell_eval: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="New folder for predicted and measured cells as cell-eval reads them; its scores are shown "
            "if it is installed.",
        ),
    ] = None,
    gpu: OnGpu = False,
) -> None:
    """Compare a run, or an ensemble, with baselines on its held-out perturbations.

    Example: tadvae evaluate run --against other_run
    """
    from pipelines.cell_eval import CellEvalFolder, cell_eval_table
    from pipelines.evaluate import as_json, evaluate_run, tables
    from tadvae.model.run_folder import RunFolder

    pairs = CellEvalFolder(cell_eval) if cell_eval is not None else None
    scores = evaluate_run(run, split, store, against or [], gpu, pairs.keep if pairs else None)
    for table in tables(scores):
        out.print(table)
    if pairs is not None:
        found = pairs.scores()
        out.print(cell_eval_table(found) if found is not None else pairs.how())
        out.print(f"cells for cell-eval: {len(pairs.places)} subfolders of {pairs.folder}")
    for note in scores.notes:
        out.print(note)
    for group, reason in scores.abstained.items():
        out.print(f"no specific prediction of the model for {group}: {reason}")
    if json_ is not None:
        Location.of(json_).write_text(json.dumps(as_json(scores), indent=1))
    out.print(f"all scores: {RunFolder(run).scores_place(split or 'all')}")


@app.command()
def report(
    run: RunArgument,
    out_: Annotated[str, typer.Option("--out", metavar="FILE.html", help="HTML file to write.")],
    store: Annotated[str | None, typer.Option(help="The run's store, if it has moved.")] = None,
) -> None:
    """Write one HTML page about a run: data, learning curves, scores, predictions, factors and mask.

    A run that was not evaluated is evaluated first.

    Example: tadvae report run --out report.html
    """
    from pipelines.report import report_run
    from tadvae.report.page import answer

    found = report_run(run, out_, store)
    for note in found.notes:
        out.print(note)
    out.print(answer(found))
    out.print(
        f"{out_}: {len(found.comparisons)} of {found.asked} held-out groups drawn; open it in a browser."
    )


for command in (predict, embed, rank):
    app.command()(command)


@app.command()
def doctor(
    workers: Annotated[int, typer.Option(min=1, help="Number of workers of the planned run.")] = 1,
    gpu: Annotated[bool, typer.Option("--gpu", help="Check for one GPU per worker.")] = False,
    storage: Annotated[
        str | None,
        typer.Option(metavar="PLACE", envvar="TADVAE_STORAGE", help="Folder or URL of stores and runs."),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Tokens of a step of one worker ('tokens' in a run's log, over its workers), to compare "
            "with the memory of GPUs.",
        ),
    ] = None,
) -> None:
    """Check the cluster for problems that would stop a run; exit code 2 if something must be fixed.

    Example: tadvae doctor --workers 4 --storage s3://lab
    """
    from pipelines.cluster.doctor import examine

    wrong = 0
    for finding in examine(workers, gpu, storage, tokens):
        print_text(finding)
        wrong += finding.fix is not None
    if wrong:
        raise UserError(f"{wrong} of these must be fixed before a run.")


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a UserError is printed here, and nowhere else, with exit code 2."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal or log that cannot show a letter shows its code
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if arguments is None else arguments
    if "--verbose" in words:  # before the command or after it
        words = ["--verbose", *(word for word in words if word != "--verbose")]
    try:
        app(words, prog_name="tadvae")
    except UserError as error:
        notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
        print_text(visible(f"tadvae: {error}{notes}"), sys.stderr)
        sys.exit(2)
