"""Reading text files from other sources, plain or gzipped."""

import gzip
import zlib
from pathlib import Path

from tadvae.base.errors import UserError


def read_text(path: str | Path, kind: str = "pathway file", give: str = "a GMT file or a table") -> str:
    """Return the text, gunzipped where needed, with Unix line ends and without a byte order mark.

    Parameters
    ----------
    kind, give
        Expected kind of file, and what to give instead of binary data; used in messages.

    Raises
    ------
    UserError
        If there is no such file, it cannot be read, or it is no whole UTF-8 text.
    """
    file = Path(path)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{path}: expected a {kind}, found no such file; give the path of an existing one."
        ) from None
    except OSError as error:
        raise UserError(
            f"{path}: expected a readable {kind}, found one that cannot be read ({error.strerror}); "
            "give a readable file."
        ) from None
    if data.startswith(b"\x1f\x8b"):  # detected by content: a download may have lost or kept the suffix .gz
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error):
            raise UserError(
                f"{path}: expected a whole gzip file, found a truncated or damaged one; fetch the file again."
            ) from None
    elif file.suffix.lower() == ".gz" and data:
        raise UserError(
            f"{path}: expected gzip data after the suffix .gz, found none; fetch the file again or remove "
            "the suffix."
        )
    if b"\0" in data:
        raise UserError(f"{path}: expected UTF-8 text, found binary data; give {give}.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(
            f"{path}, line {line}: expected UTF-8 text, found the byte {data[error.start]:#04x}; save the "
            "file as UTF-8."
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def format_suffix(path: str | Path) -> str:
    """The suffix that tells the format, in lower case and without a final ``.gz``."""
    path = Path(path)
    return (Path(path.stem) if path.suffix.lower() == ".gz" else path).suffix.lower()
