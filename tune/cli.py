"""The console command ``tadvae``: all of ``pipelines.cli.main``, and ``tadvae tune``.

It lives here and not in ``pipelines`` because imports go one way; see docs/decisions.md.
"""

from typing import Annotated

import typer

from pipelines.cli import main as commands
from pipelines.cli.main import StoreArgument, app
from pipelines.cli.show import out
from tadvae.base.errors import UserError

tune_app = typer.Typer(help="Search for better settings with Ray Tune, and look at what was found.")
app.add_typer(tune_app, name="tune")

SweepArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="A sweep's folder or URL.")]
FORMATS = ("csv", "parquet", "markdown", "html", "yaml")


@tune_app.command("run")
def run(
    store: StoreArgument,
    out_: Annotated[str, typer.Option("--out", metavar="SWEEP", help="The sweep's folder or URL.")],
    config: Annotated[
        str | None, typer.Option(metavar="F.yaml", help="Space and settings; default: the packaged ones.")
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="How many settings are tried.")] = None,
    max_concurrent: Annotated[int | None, typer.Option(min=1, help="Trials at once.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Ray Train workers of each trial.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted sweep.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting, such as experiment.train.epochs=10."),
    ] = None,
) -> None:
    """Train many times with different settings; the worse ones stop early.

    Example: tadvae tune run store --out sweep --trials 20 --set experiment.pathways.file=go.gmt
    """
    from tune.config import DEFAULT_SPACE, SweepConfig
    from tune.sweep import run_sweep

    given = {"max_concurrent": max_concurrent, "workers": workers}
    overrides = [f"{key}={value}" for key, value in given.items() if value is not None]
    if resume:
        if config or settings or overrides:
            raise UserError(
                "--resume goes on with the sweep's own settings; only --trials may be given anew."
            )
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
        out.print(f"{out_}: interrupted; go on with it by --resume.")
        raise typer.Exit(1)
    if not counts["finished"]:
        raise typer.Exit(1)


@tune_app.command("table")
def table(
    sweep: SweepArgument,
    out_: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="Also write files into this folder.")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help=f"Which files, of {', '.join(FORMATS)}; may be repeated; default: all.",
        ),
    ] = None,
) -> None:
    """Show a sweep's trials, the best first; write CSV, Parquet, Markdown, one HTML page and the best YAML.

    Example: tadvae tune table sweep --out sweep-report
    """
    from tadvae.base.filesystem import Location
    from tune.records import read_records, read_sweep
    from tune.table import as_rich, rows_of, write_report

    if formats and out_ is None:
        raise UserError("--format says which files to write; say where with --out.")
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
