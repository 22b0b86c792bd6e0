"""Ray Train's list of a run's checkpoints, by which it resumes from the last and deletes the oldest."""

import json
from collections.abc import Iterator
from typing import Any

from tadvae.base.errors import UserError
from tadvae.model.run_folder import CHECKPOINT, CHECKPOINTS, RunFolder

SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's name of the list."""
_NAME = "checkpoint_dir_name"


def require_own_checkpoints(run: RunFolder) -> None:
    """See that Ray Train's list names only checkpoints of this run, which Ray Train itself does not ask.

    Raises
    ------
    UserError
        If the list is damaged, or names a folder that is not there or lies outside.
    """
    folder = run.place / CHECKPOINTS
    place = folder / SNAPSHOT
    if not place.exists():
        return
    try:
        listed = json.loads(place.read_bytes())
        if not isinstance(listed, dict) or not isinstance(listed.get("checkpoint_results"), list):
            raise ValueError("no list of checkpoints")
        names = list(_names_in(listed))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(
            f"{place}: damaged list of checkpoints ({type(error).__name__}); restore the file, or delete the "
            "checkpoints to train from the start."
        ) from None
    for name in names:
        checkpoint = folder.inside(name, CHECKPOINT, place)
        if not checkpoint.exists():
            raise UserError(
                f"{place}: lists the checkpoint {name}, which is missing; restore its folder, or delete the "
                "checkpoints to train from the start."
            )


def _names_in(node: Any) -> Iterator[Any]:
    """Values of every key that holds a name, or a list of names, at any depth."""
    if isinstance(node, dict):
        for key, value in node.items():
            if _NAME in key:
                yield from value if isinstance(value, list) else [value]
            else:
                yield from _names_in(value)
    elif isinstance(node, list):
        for value in node:
            yield from _names_in(value)
