"""Asking a running server, on its control socket (`control` says what can be asked).

Apart from the server's side, so that a command which only asks need not load a web server.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastboot.model import FastbootError

SOCKET = "control.sock"
MAX_PATH = 107
"""Octets of a Unix socket's path (unix(7): sun_path holds 108 with its end)."""
_CUT_OFF = http.client.IncompleteRead, ConnectionError


class ControlError(FastbootError):
    """The server answered a command with a refusal."""


class NeedsRestart(FastbootError):
    """A reload changes what a running server can not; `keys` names it."""

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__(f"needs a restart: {', '.join(keys)}")
        self.keys = tuple(keys)


class NotRunning(FastbootError):
    """No server answers on the control socket."""


def socket_path(state: Path) -> Path:
    """Return where the control socket is. Raises FastbootError where that is too long for one."""
    path = state.absolute() / SOCKET
    if len(os.fsencode(path)) > MAX_PATH:
        raise FastbootError(f"state: {state} is too long: {SOCKET} in it may have at most {MAX_PATH} octets")
    return path


class ControlClient:
    """Asks a running server. Methods raise NotRunning where none answers, and what it answers as an error."""

    def __init__(self, state: Path) -> None:
        self._path = socket_path(state)

    def get(self, path: str) -> Any:
        """Return the JSON that a GET of `path` answers."""
        return self._answer("GET", path)

    def post(self, path: str, body: object = None) -> Any:
        """Return the JSON that a POST of `body`, as JSON, to `path` answers."""
        return self._answer("POST", path, b"" if body is None else json.dumps(body).encode())

    def events(self, *, replay: bool = False) -> Iterator[dict[str, Any]]:
        """Yield events as they happen, until the server ends."""
        with self._ask("GET", f"/events?replay={int(replay)}") as response, suppress(*_CUT_OFF):
            for line in response:
                yield json.loads(line)

    def _answer(self, method: str, path: str, body: bytes = b"") -> Any:
        with self._ask(method, path, body) as response:
            try:
                return json.loads(response.read())
            except _CUT_OFF as error:
                raise NotRunning(f"the fastboot server on {self._path.parent} ended as it answered") from error

    def _ask(self, method: str, path: str, body: bytes = b"") -> http.client.HTTPResponse:
        connection = _UnixConnection(self._path)
        try:
            connection.request(method, path, body, headers={"Connection": "close"})
            response = connection.getresponse()
        except (FileNotFoundError, NotADirectoryError, ConnectionError) as error:
            raise NotRunning(f"no fastboot server runs on {self._path.parent}") from error
        except PermissionError as error:
            raise FastbootError(f"{self._path} is not yours; ask as root or as the server's user") from error
        if response.status >= 400:
            try:
                said = json.loads(response.read())
            except ValueError:
                raise ControlError(f"the server answered {response.status} {response.reason}") from None
            raise NeedsRestart(said["needs_restart"]) if "needs_restart" in said else ControlError(said["error"])
        return response


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.connect(str(self._path))
        except OSError:
            self.sock.close()
            raise
