"""Download public screens, check their checksums, and write the spec for ``tadvae convert``."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tadvae.base.config import read_yaml
from tadvae.base.documents import dump_yaml, parse_json
from tadvae.base.download import download
from tadvae.base.errors import UserError
from tadvae.datasets.registry import Entry
from tadvae.store.spec import StoreSpec

CHECKSUMS = "checksums.json"
"""File name of the checksums that the first download of each file had."""
SPEC = "spec.yaml"
BLOCK = 1 << 22


def fetch(
    entries: Sequence[Entry], folder: Path, *, mirror: str | None = None, timeout: float = 60.0
) -> Path:
    """Download the missing files of a folder, check all of them, and write ``spec.yaml`` there.

    Parameters
    ----------
    folder
        Folder of the files. Its ``checksums.json`` holds the SHA-256 that each had at its first download.
    mirror
        URL of a folder with files of the same names; None: the URL of each entry.
    timeout
        Seconds to wait for the server to answer.

    Returns
    -------
    The path of the spec.

    Raises
    ------
    UserError
        If a file cannot be downloaded, has changed since its first download, or does not have the checksum
        that its publisher gives.
    """
    names = [entry.dataset.name for entry in entries]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"dataset '{repeated[0]}' is asked for twice; name each once.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); name another with --out.") from None
    for entry in entries:
        url = entry.url if mirror is None else f"{mirror.rstrip('/')}/{entry.dataset.path}"
        _fetch_one(entry, url, folder, timeout)
    spec = StoreSpec.parse(read_yaml(folder / SPEC), str(folder / SPEC)) if (folder / SPEC).exists() else None
    there = [] if spec is None else spec.datasets  # kept as they are: the user may have edited them
    datasets = [*there, *(e.dataset for e in entries if e.dataset.name not in {d.name for d in there})]
    merged = StoreSpec(datasets=datasets) if spec is None else spec.model_copy(update={"datasets": datasets})
    text = dump_yaml(merged.model_dump(exclude_defaults=True))
    (folder / SPEC).write_text(text, encoding="utf-8")
    return folder / SPEC


def _fetch_one(entry: Entry, url: str, folder: Path, timeout: float) -> None:
    place = folder / entry.dataset.path
    if place.exists():
        _check(entry, place, folder, "delete it, and fetch it again")
        return
    fix = "try again; if the checksum stays different, the publisher has changed the file"
    download(
        url,
        place,
        timeout,
        f"put the file into the folder yourself as {place.name}",
        check=lambda new: _check(entry, new, folder, fix),
    )


def _check(entry: Entry, file: Path, folder: Path, fix: str) -> None:
    """Compare a file with the publisher's checksum and with that of its first download, saved if new."""
    kept = _kept(folder)
    algorithms = {"sha256", *([entry.checksum.partition(":")[0]] if entry.checksum else [])}
    found = _digests(file, algorithms)
    name = entry.dataset.path
    if entry.checksum is not None:
        algorithm, _, expected = entry.checksum.partition(":")
        if found[algorithm] != expected:
            raise UserError(
                f"{folder / name}: its {algorithm} is {found[algorithm]}, expected {expected} as published; "
                f"{fix}."
            )
    if name in kept and kept[name]["sha256"] != found["sha256"]:
        raise UserError(
            f"{folder / name}: its sha256 is {found['sha256']}, expected {kept[name]['sha256']} as at its "
            f"first download ({CHECKSUMS}); {fix}."
        )
    if name not in kept:
        kept[name] = {"sha256": found["sha256"], "bytes": file.stat().st_size, "url": entry.url}
        (folder / CHECKSUMS).write_text(json.dumps(kept, indent=1, sort_keys=True), encoding="utf-8")


def _kept(folder: Path) -> dict[str, dict[str, Any]]:
    if not (folder / CHECKSUMS).exists():
        return {}
    try:
        kept: dict[str, dict[str, Any]] = parse_json((folder / CHECKSUMS).read_text(encoding="utf-8"))
        if not all(isinstance(entry["sha256"], str) for entry in kept.values()):
            raise TypeError
    except (OSError, ValueError, AttributeError, LookupError, TypeError):
        raise UserError(
            f"{folder / CHECKSUMS}: damaged, expected JSON with a sha256 for each file; delete it to keep "
            "new checksums of the files that are there."
        ) from None
    return kept


def _digests(file: Path, algorithms: set[str]) -> dict[str, str]:
    digests = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    with file.open("rb") as stream:
        while block := stream.read(BLOCK):
            for digest in digests.values():
                digest.update(block)
    return {name: digest.hexdigest() for name, digest in digests.items()}
