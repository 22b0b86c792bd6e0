"""Download one file over HTTP; what is broken or unwanted leaves nothing behind."""

import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tadvae.base.errors import UserError


def download(
    url: str, place: Path, timeout: float, mend: str, check: Callable[[Path], None] | None = None
) -> None:
    """Fetch a file; one that is there already stays until the new one is whole.

    Parameters
    ----------
    timeout
        Seconds to wait for an answer of the server.
    mend
        What to do where there is no network, for the sentence.
    check
        Looks at the new file and raises if it is not what it should be.

    Raises
    ------
    UserError
        If there is no such file, or none can be written.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    # pooch leaves the socket of a refused request open until the garbage is collected
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
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{url}: expected a file to download, found none ({reason}); check the network and the address, "
            f"or {mend}."
        ) from None


def _close_if_refused(response: Any, *_: object, **__: object) -> None:
    if not response.ok:
        response.close()
