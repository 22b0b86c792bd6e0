"""Download one file over HTTP; an incomplete or rejected download leaves no file behind."""

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from tadvae.base.errors import UserError


def download(
    url: str, place: Path, timeout: float, fix: str, check: Callable[[Path], None] | None = None
) -> None:
    """Download a file; an existing file is replaced only once the new one is complete and checked.

    Parameters
    ----------
    timeout
        Seconds to wait for the server to answer.
    fix
        What the user can do without a network; the error message ends with it.
    check
        Called with the new file; raises if the content is not the expected one.

    Raises
    ------
    UserError
        If the file cannot be downloaded or written.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    # pooch leaves the socket of a refused request open until garbage collection; Python then warns
    downloader = pooch.HTTPDownloader(timeout=timeout, hooks={"response": _close_if_refused})
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place.parent) as partial:
            new = Path(partial) / place.name
            pooch.retrieve(url, known_hash=None, fname=place.name, path=partial, downloader=downloader)
            if check is not None:
                check(new)
            shutil.move(new, place)
    except (requests.RequestException, OSError, ValueError) as error:
        shown, hidden = _public(url)
        reason = type(error).__name__ if hidden else " ".join(str(error).split())[:160]
        raise UserError(
            f"{shown}: expected a file to download, found none ({reason}); check the network and the "
            f"address, or {fix}."
        ) from None


def _public(url: str) -> tuple[str, bool]:
    """The address without what may be secret (user, password, signature), and whether it had such parts."""
    parts = urlsplit(url)
    shown = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    return shown, shown != url


def _close_if_refused(response: Any, *_: object, **__: object) -> None:
    if not response.ok:
        response.close()
