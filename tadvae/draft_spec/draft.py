"""``tadvae init``: a spec for some files, with a comment at every guess."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tadvae.base.errors import UserError
from tadvae.base.filesystem import Location
from tadvae.base.terminal import visible
from tadvae.draft_spec.dataset import DatasetDraft, Given, draft_dataset
from tadvae.draft_spec.decisions import Ask, Decisions, some
from tadvae.draft_spec.file import LookedAt, look_at
from tadvae.store.conversion import plan_store
from tadvae.store.spec import load_spec_text

HEAD = "# Spec for `tadvae convert`, written by `tadvae init`; docs/formats.md explains every setting.\n"
_GUESSED = "guessed: "


def draft_spec(paths: Sequence[str], folder: Path, given: Given, ask: Ask | None = None) -> str:
    """Return the text of a spec that converts some files.

    Parameters
    ----------
    paths
        ``.h5ad`` files and ``.zarr`` folders.
    folder
        Folder of the spec, where relative paths start.
    given
        What the user says of all files.
    ask
        Asks a person what the files do not tell; None: guess.

    Raises
    ------
    UserError
        If a file cannot be converted, or something cannot be guessed and nobody can be asked.
    """
    files = [look_at(path) for path in paths]
    _require_columns(files, given)
    names = _names(files)
    drafts = [
        draft_dataset(file, name, given, Decisions(file.path, ask))
        for file, name in zip(files, names, strict=True)
    ]
    text = _text(drafts, folder)
    spec = load_spec_text(text, "the drafted spec", folder)
    if all(head.whole_rows for file in files for head in file.heads):  # otherwise it reads whole matrices
        plan_store(spec)
    return text


def n_guesses(text: str) -> int:
    """Number of comments that mark a guess."""
    return text.count(f"  # {_GUESSED}")


def write_spec(text: str, place: str, overwrite: bool) -> None:
    """Write the spec; an existing file is kept unless it may be overwritten."""
    require_place(place, overwrite)
    Location.of(place).write_text(text)


def require_place(place: str, overwrite: bool) -> None:
    """Raise a UserError where the spec must not, or cannot, be written."""
    if "://" in place:
        raise UserError(f"{place}: a spec is read from disk; give the path of a file with --out.")
    if Path(place).suffix not in (".yaml", ".yml"):
        raise UserError(f"{place}: expected a file name that ends in .yaml; give another with --out.")
    if Path(place).is_dir() or (Path(place).exists() and not overwrite):
        raise UserError(
            f"{place}: already exists; name another file with --out, or overwrite it with --force."
        )


def _require_columns(files: Sequence[LookedAt], given: Given) -> None:
    """Columns and labels that the user names exist in one of the files."""
    for option, name in (("--perturbation", given.perturbation), ("--context", given.context)):
        if name is not None and not any(name in file.columns for file in files):
            found = some(dict.fromkeys(column for file in files for column in file.columns), 12) or "none"
            raise UserError(
                f"{option} {name}: no file has such a column of obs (columns: {found}); correct it."
            )
    for label in given.controls:
        if not any(label in column.labels for file in files for column in file.columns.values()):
            raise UserError(f"--control {label}: no column of obs in any file has this label; correct it.")


def _names(files: Sequence[LookedAt]) -> list[str]:
    """Names of the datasets, those of the files; unique also where case is ignored."""
    names: list[str] = []
    for file in files:
        stem = re.sub(r"[^A-Za-z0-9_.-]+", "_", re.sub(r"\.(h5ad|zarr|h5)$", "", file.name)).lstrip("_.-")
        stem = (stem or "dataset")[:60]
        taken, name, n = {each.lower() for each in names}, stem, 1
        while name.lower() in taken:
            n += 1
            name = f"{stem}_{n}"
        names.append(name)
    return names


def _text(drafts: Sequence[DatasetDraft], folder: Path) -> str:
    human = [draft.genes.is_human for draft in drafts]
    lines = [HEAD, "datasets:\n"]
    for draft in drafts:
        settings = draft.settings | {"path": _path(draft.settings["path"], folder)}
        body = _lines(settings, draft.reasons, "    ", ())
        lines += ["  - " + body[0].lstrip(), *body[1:]]
    if not any(human):
        reason = "few identifiers are human genes; identifiers are used as they are"
        lines += ["genes:\n", f"  reference: none  # {_GUESSED}{reason}\n"]
    elif not all(human):
        first = drafts[human.index(False)].settings["path"]
        raise UserError(
            f"{first}: its genes are not human, unlike those of other files; write one spec for the files of "
            "each organism."
        )
    return "".join(lines)


def _path(path: str, folder: Path) -> str:
    """Relative to the folder of the spec if it is inside, otherwise absolute."""
    absolute, base = Path(path).absolute(), folder.absolute()
    return os.path.relpath(absolute, base) if absolute.is_relative_to(base) else str(absolute)


def _lines(
    settings: Mapping[str, Any], reasons: Mapping[tuple[str, ...], str], indent: str, at: tuple[str, ...]
) -> list[str]:
    """One line per setting, with a comment where it is a guess."""
    lines = []
    for key, value in settings.items():
        here = (*at, key)
        nested = isinstance(value, dict) and any(reason[: len(here)] == here for reason in reasons)
        shown = "" if nested and here not in reasons else f" {_flow(value)}"
        comment = f"  # {_GUESSED}{visible(reasons[here])}" if here in reasons else ""
        lines.append(f"{indent}{_flow(key)}:{shown}{comment}\n")
        if not shown:
            lines += _lines(value, reasons, indent + "  ", here)
    return lines


def _flow(value: Any) -> str:
    """A value as YAML on one line; what cannot be seen is written as escapes."""
    how: dict[str, Any] = {"default_flow_style": True, "width": 10**9, "sort_keys": False}
    text: str = yaml.safe_dump(value, allow_unicode=True, **how)
    text = text.removesuffix("\n").removesuffix("\n...")
    if not text.isprintable():
        text = yaml.safe_dump(value, default_style='"', **how).removesuffix("\n")
    return text
