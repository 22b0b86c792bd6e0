"""The console command ``tadvae``: all commands of ``pipelines.cli.main``, and ``tadvae tune``.

It is here and not in ``pipelines``, because ``tune`` imports ``pipelines``; see docs/decisions.md.
"""

from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from pipelines.cli import main as commands
from pipelines.cli.arguments import StoreArgument
from pipelines.cli.main import app
from pipelines.cli.show import out
from tadvae.base.errors import UserError

if TYPE_CHECKING:
    from tune.config import SweepConfig

tune_app = typer.Typer(help="Search for better settings with Ray Tune, and show the results.")
app.add_typer(tune_app, name="tune")

SweepArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="Folder or URL of a sweep.")]
FORMATS = ("csv", "parquet", "markdown", "html", "yaml")


class _GpuNeedsNoNumber(typer.core.TyperCommand):
    """Lets ``--gpu`` stand alone: Typer's options either always have a value, or never."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = list(args)
        for i, word in enumerate(args):
            if word == "--gpu" and not _is_number(args[i + 1] if i + 1 < len(args) else ""):
                words[i] = "--gpu=1"
        return super().parse_args(ctx, words)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def about_grid(config: "SweepConfig") -> str:
    """How many trials a grid has, and which combinations it leaves out."""
    from tune.shown import short_name

    names = " × ".join(map(short_name, config.parameters))
    about = [f"{config.n_trials} trials: {names} in every combination"]
    for key, parameter in config.parameters.items():
        for other, values in parameter.when.items():
            where = " or ".join(map(str, values))
            about.append(f"{short_name(key)} varies only where {short_name(other)} is {where}")
    return "; ".join(about)


@tune_app.command("run", cls=_GpuNeedsNoNumber)
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
    gpu: Annotated[
        float | None,
        typer.Option(
            "--gpu",
            metavar="[FRACTION]",
            help="Train on GPUs: one per worker, or with a fraction, such as 0.25, four trials on each GPU.",
        ),
    ] = None,
    paper: Annotated[
        bool,
        typer.Option(
            "--paper",
            help="Compare all maskings, embeddings and encoders: every combination, 10 epochs each, none "
            "stopped early.",
        ),
    ] = False,
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

    The first trials compare masking, embedding and encoder; then the search varies all settings of its space.

    Example: tadvae tune run store --out sweep --trials 20 --set experiment.pathways.file=go.gmt
    """
    from tune.config import DEFAULT_SPACE, PAPER, SweepConfig
    from tune.sweep import run_sweep

    if paper and config is not None:
        raise UserError("--paper has its own search space; leave out --config.")
    given = {"max_concurrent": max_concurrent, "workers": workers, "gpus": gpu}
    overrides = [f"{key}={value}" for key, value in given.items() if value is not None]
    if resume:
        if config or paper or settings or overrides:
            raise UserError("--resume continues with the sweep's own settings; only --trials can be changed.")
        records = run_sweep(store, out_, None, resume=True, trials=trials)
    else:
        overrides += [f"trials={trials}"] if trials is not None else []
        sweep = SweepConfig.load(
            config or (PAPER if paper else DEFAULT_SPACE), [*(settings or []), *overrides]
        )
        if trials is not None and sweep.search == "grid":
            raise UserError("a grid has one trial per combination; leave out --trials.")
        if sweep.search == "grid":
            out.print(about_grid(sweep))
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
    from tune.answer import answer
    from tune.records import read_records, read_sweep
    from tune.table import for_terminal, rows_of, write_report

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
    for part in for_terminal(rows, config, sweep, out.width):
        out.print(part)
    out.print(answer(records, config))
    if out_ is not None:
        for path in write_report(Location.of(out_), sweep, config, records, formats or FORMATS):
            out.print(f"written: {path}")


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    commands.main(arguments)
