"""``tadvae init``: write a spec by looking into files."""

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.show import out


def init(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE.h5ad...", help="Files of your screens, or .zarr folders.")
    ],
    out_: Annotated[str, typer.Option("--out", metavar="SPEC.yaml", help="Spec to write.")] = "spec.yaml",
    perturbation: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of obs with the perturbation of each cell.")
    ] = None,
    control: Annotated[
        list[str] | None, typer.Option(metavar="LABEL", help="Label of control cells; may be repeated.")
    ] = None,
    context: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of obs with the cell line or type.")
    ] = None,
    modality: Annotated[
        str | None, typer.Option(metavar="NAME", help="How targets are perturbed: CRISPRi, drug, ….")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing; take the best guesses.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing spec.")] = False,
) -> None:
    """Write the spec for `tadvae convert` by looking into the files; ask what they do not tell.

    Without a terminal the best guesses are taken, and each is marked with a comment in the spec.

    Example: tadvae init norman19.h5ad kang18.h5ad --out screens.yaml
    """
    from pipelines.cli.questions import ask, on_a_terminal
    from tadvae.draft_spec.dataset import Given
    from tadvae.draft_spec.draft import draft_spec, n_guesses, require_place, write_spec

    require_place(out_, force)
    given = Given(perturbation, tuple(control or ()), context, modality)
    text = draft_spec(files, Path(out_).parent, given, None if yes or not on_a_terminal() else ask)
    write_spec(text, out_, force)
    guesses = n_guesses(text)
    number = "1 guess" if guesses == 1 else f"{guesses} guesses"
    check = f"look at its {number} (`# guessed: …`), then " if guesses else ""
    out.print(f"{out_}: {check}convert it with `tadvae convert {out_} --out STORE`.")
