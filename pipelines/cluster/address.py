"""Whether a Ray cluster answers at an address: Ray itself waits for minutes before it says so."""

import os
import socket
import threading

from tadvae.base.errors import UserError

SECONDS = 12.0
"""Longest wait for an answer; a name server alone may take longer."""
FIX = "start the head there, correct RAY_ADDRESS, or unset it to run on this machine"
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The beginning of a gRPC connection; the server answers with a settings frame, whose fourth byte is 4."""


class UnreachableError(UserError):
    """No cluster answers at an address.

    Attributes
    ----------
    reason
        What happened instead.
    """

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"the Ray cluster at {address} cannot be reached ({reason}); {FIX}.")
        self.reason = reason


def find_cluster(address: str) -> str:
    """Return the address of a cluster that answers, with the running cluster's for ``auto``.

    Raises
    ------
    UnreachableError
        If nothing answers there within :data:`SECONDS`, or something that is no Ray.
    """
    found = address
    if address == "auto":
        from ray._private.services import get_ray_address_from_environment

        try:
            found = get_ray_address_from_environment("auto", None)
        except ConnectionError:
            raise UnreachableError(address, "no Ray runs on this machine") from None
    scheme, mark, server = found.rpartition("://")
    host, colon, port = server.partition("/")[0].rpartition(":")
    if mark and scheme != "ray":
        return found  # another kind of client, which has its own checks
    if not colon or not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise UnreachableError(address, "expected HOST:PORT, ray://HOST:PORT or auto")
    if reason := _why_no_answer(host.strip("[]"), int(port)):
        raise UnreachableError(address, reason)
    return found


def _why_no_answer(host: str, port: int) -> str | None:
    reasons: list[str | None] = []
    asking = threading.Thread(target=lambda: reasons.append(_ask(host, port)), daemon=True)
    asking.start()
    asking.join(SECONDS)
    return reasons[0] if reasons else f"no answer within {SECONDS:.0f} seconds"


def _ask(host: str, port: int) -> str | None:
    try:
        with socket.create_connection((host, port), timeout=SECONDS / 2) as server:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return None
            server.sendall(_HELLO)
            answer = server.recv(9)
    except (OSError, UnicodeError) as error:  # a name that is none is a UnicodeError
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    return None if answer[3:4] == b"\x04" else "what answers there is no Ray"
