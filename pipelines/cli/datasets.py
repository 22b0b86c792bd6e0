"""``tadvae datasets``: list and download public screens."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.show import out
from tadvae.base.terminal import print_text

datasets_app = typer.Typer(
    help="List public screens, and download them with a spec for `tadvae convert`.",
    no_args_is_help=True,
)


def _names(incomplete: str) -> list[str]:
    from tadvae.datasets.registry import registered

    return [name for name in registered() if name.startswith(incomplete)]


@datasets_app.command("list")
def list_(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """List public screens with their size and licence.

    Example: tadvae datasets list
    """
    from rich.table import Table

    from tadvae.datasets.registry import registered

    entries = registered()
    if as_json:
        about = {name: entry.model_dump(mode="json") for name, entry in entries.items()}
        print_text(json.dumps(about, indent=1))
        return
    table = Table(title="Public screens; --json shows citations and addresses")
    for column in ("name", "what", "size", "licence", "checksum"):
        table.add_column(column, justify="right" if column == "size" else "left")
    for name, entry in entries.items():
        size = "?" if entry.size is None else f"{entry.size / 1e9:.2f} GB"
        known = "at first download" if entry.checksum is None else "published"
        table.add_row(name, entry.about, size, entry.licence, known)
    out.print(table)


@datasets_app.command("fetch")
def fetch(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...", help="Names as listed, or your own YAML files.", autocompletion=_names
        ),
    ],
    out_: Annotated[
        str | None,
        typer.Option("--out", metavar="FOLDER", help="Folder for the files; default: the user's cache."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", envvar="TADVAE_DATASETS_URL", help="Address of a mirror with the same files."
        ),
    ] = None,
) -> None:
    """Download screens, check them, and write a spec for `tadvae convert` into the same folder.

    Existing files are checked and not downloaded again.

    Example: tadvae datasets fetch norman19 replogle22_k562 --out screens
    """
    import pooch

    from tadvae.datasets.fetch import fetch as run
    from tadvae.datasets.registry import find_entry

    entries = [find_entry(name) for name in names]
    folder = Path(out_) if out_ is not None else Path(pooch.os_cache("tadvae")) / "datasets"
    spec = run(entries, folder, mirror=url)
    for entry in entries:
        out.print(f"{entry.dataset.name}: {entry.licence}; please cite {entry.citation}")
        out.print(f"  prepared by {entry.source}")
    out.print(f"{spec}: convert with `tadvae convert {spec} --out STORE`.")
