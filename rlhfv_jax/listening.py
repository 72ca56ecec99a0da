"""The socket of a server, bound before the server is ready."""

import socket

from rlhfv_jax.errors import UserError


def bound(host: str, port: int) -> socket.socket:
    """A bound socket that listens later: until then, clients are refused rather than left waiting.

    Port 0 takes any free one; `getsockname()` tells. Raises UserError where the address is taken or is none.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise UserError(f"Cannot listen on {host}, port {port}: {error}.") from error
    return listener


def address(scheme: str, host: str, port: int) -> str:
    """`http://127.0.0.1:8000` and the like, an IPv6 address in brackets."""
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
