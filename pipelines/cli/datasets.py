"""``tadvae datasets``: list and download public screens; write those of a store as files."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.show import out
from tadvae.base.terminal import print_text

datasets_app = typer.Typer(
    help="List public screens, and download them with a spec for `tadvae convert`; write those of a store as "
    ".h5ad files.",
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


@datasets_app.command("export")
def export(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Folder or URL of the store.")],
    out_: Annotated[
        str, typer.Option("--out", metavar="FOLDER", help="New or empty folder, or URL, for the files.")
    ],
) -> None:
    """Write the datasets of a store as .h5ad files for other programs, with a spec that converts them back.

    Labels are those of GEARS (ctrl, A+ctrl, A+B, in obs["condition"]); X is log1p of counts per ten thousand.

    Example: tadvae datasets export store --out files
    """
    from tadvae.base.filesystem import Location
    from tadvae.store.export import CONTROL
    from tadvae.store.export import export as run
    from tadvae.store.reader import Store

    opened = Store.open(store)
    for place in run(opened, Location.of(out_)):
        out.print(f"{place}: written")
    out.print(
        f"perturbation: obs['condition'], control '{CONTROL}'; context: obs['cell_type']; counts: "
        f"layers['counts']. `tadvae convert {out_}/spec.yaml` reads them back."
    )
