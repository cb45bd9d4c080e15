"""TCP ports of this machine: finding a free one, and saying clearly that one is taken."""

from __future__ import annotations

import errno
import socket

from local_stack.errors import LocalStackError

LOCALHOST = "127.0.0.1"


def free_port(host: str = LOCALHOST) -> int:
    """A port that nobody uses now.

    It is free again on return, so another program may take it first: bind it soon, and be ready to ask again.
    """
    with socket.create_server((host, 0)) as server:
        port: int = server.getsockname()[1]
        return port


def port_in_use(host: str, port: int) -> bool:
    """Whether binding the port would fail, because somebody listens there.

    Errors: OSError if the host is not an address of this machine, PermissionError for a port below 1024.
    """
    try:
        # As the servers that we start do, this binds beside connections of an earlier server that just ended.
        with socket.create_server((host, port)):
            return False
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return True
        raise


def require_free_port(port: int, what: str, *, host: str = LOCALHOST, setting: str | None = None) -> None:
    """Errors: LocalStackError that names the port, what it is for, and the setting that moves it."""
    try:
        if not port_in_use(host, port):
            return
        problem = "another program listens there"
    except PermissionError:
        problem = "this user may not listen there"
    way_out = f"stop that program, or set {setting} to another port" if setting else "stop that program"
    raise LocalStackError(f"{what} needs port {port} on {host}, but {problem}; {way_out}")
