"""The console command ``tadvae``: all commands of ``pipelines.cli.main``, and ``tadvae tune``.

It is here and not in ``pipelines``, because ``tune`` imports ``pipelines``; see docs/decisions.md.
"""

from typing import Annotated

import typer

from pipelines.cli import main as commands
from pipelines.cli.main import StoreArgument, app
from pipelines.cli.show import out
from tadvae.base.errors import UserError

tune_app = typer.Typer(help="Search for better settings with Ray Tune, and show the results.")
app.add_typer(tune_app, name="tune")

SweepArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="Folder or URL of a sweep.")]
FORMATS = ("csv", "parquet", "markdown", "html", "yaml")


@tune_app.command("run")
def run(
    store: StoreArgument,
    out_: Annotated[str, typer.Option("--out", metavar="SWEEP", help="Folder or URL of the sweep.")],
    config: Annotated[
        str | None,
        typer.Option(
            metavar="F.yaml", help="Search space and settings of the sweep; default: the packaged ones."
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Number of trials, each with other settings.")
    ] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="Largest number of trials at the same time.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Ray Train workers per trial.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted sweep.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change one setting, for example experiment.train.epochs=10; may be repeated.",
        ),
    ] = None,
) -> None:
    """Train many times with different settings; trials with worse results stop early.

    Example: tadvae tune run store --out sweep --trials 20 --set experiment.pathways.file=go.gmt
    """
    from tune.config import DEFAULT_SPACE, SweepConfig
    from tune.sweep import run_sweep

    given = {"max_concurrent": max_concurrent, "workers": workers}
    overrides = [f"{key}={value}" for key, value in given.items() if value is not None]
    if resume:
        if config or settings or overrides:
            raise UserError("--resume continues with the sweep's own settings; only --trials can be changed.")
        records = run_sweep(store, out_, None, resume=True, trials=trials)
    else:
        overrides += [f"trials={trials}"] if trials is not None else []
        sweep = SweepConfig.load(config or DEFAULT_SPACE, [*(settings or []), *overrides])
        records = run_sweep(store, out_, sweep)
    counts = {name: sum(r.status == name for r in records) for name in ("finished", "stopped", "failed")}
    out.print(
        f"{out_}: "
        + ", ".join(f"{n} {name}" for name, n in counts.items())
        + f"; see `tadvae tune table {out_}`."
    )
    if any(record.status == "running" for record in records):
        out.print(f"{out_}: interrupted; continue it with --resume.")
        raise typer.Exit(1)
    if not counts["finished"]:
        raise typer.Exit(1)


@tune_app.command("table")
def table(
    sweep: SweepArgument,
    out_: Annotated[
        str | None,
        typer.Option("--out", metavar="DIR", help="Folder for the files of the table; default: print only."),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help=f"Format of the files: {', '.join(FORMATS)}; may be repeated; default: all.",
        ),
    ] = None,
) -> None:
    """Show the trials of a sweep, the best first; write CSV, Parquet, Markdown, HTML and the best settings.

    Example: tadvae tune table sweep --out sweep-report
    """
    from tadvae.base.filesystem import Location
    from tune.records import read_records, read_sweep
    from tune.table import as_rich, rows_of, write_report

    if formats and out_ is None:
        raise UserError("--format says which files to write; name their folder with --out.")
    unknown = sorted(set(formats or ()) - set(FORMATS))
    if unknown:
        raise UserError(f"--format {unknown[0]}: no such format; expected one of {', '.join(FORMATS)}.")
    place = Location.of(sweep)
    config, records = read_sweep(place), read_records(place)
    if not records:
        raise UserError(f"{sweep}: no trial has started yet; wait for the first one.")
    rows = rows_of(records, config)
    out.print(as_rich(rows, config, sweep))
    if out_ is not None:
        for path in write_report(Location.of(out_), sweep, config, records, formats or FORMATS):
            out.print(f"written: {path}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    commands.main(arguments)
