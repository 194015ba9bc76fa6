"""The control socket: HTTP on STATE/control.sock, for whoever may open that file (mode 0600).

GET  /status                   what runs, counters, transfers on their way
GET  /leases                   /nodes, /media likewise
GET  /why[?of=MACHINE...]      why machines do not boot; without any named, all that are stuck
GET  /events[?replay=1]        newline-delimited JSON, one event a line, as they happen
POST /reload                   read the configuration again
POST /arm                      {"nodes": [NAME, ...], "profile": NAME or null}: let nodes install once, all or none
POST /disarm                   {"nodes": [NAME, ...]}: forget what was armed, or installed
POST /leases/ADDRESS/release   give an address back to its pool
POST /leases/import            take leases of another server, a JSON list of `ForeignLease.facts`
"""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Protocol

from aiohttp import web

from fastboot.model import Event, FastbootError, Install
from fastboot.services.control_client import NeedsRestart, socket_path
from fastboot.services.facts import install_facts
from fastboot.state.foreign import ForeignLease
from fastboot.watch.diagnose import Diagnosis
from fastboot.watch.events import Subscription
from fastboot.watch.log import plain, printable

MAX_BODY = 64 << 20
"""Octets of a question, for an import of some hundred thousand leases."""

Facts = Mapping[str, object]


class Controlled(Protocol):
    """What the control socket shows and steers; `fastboot.Server` is one."""

    def status(self) -> Facts: ...
    async def leases(self) -> Sequence[Facts]: ...
    def nodes(self) -> Sequence[Facts]: ...
    def media(self) -> Sequence[Facts]: ...
    async def why(self, *machines: str) -> Sequence[Diagnosis]: ...
    def events(self, *, replay: bool = False) -> Subscription: ...
    def release(self, address: IPv4Address) -> bool: ...
    async def reload(self) -> Sequence[str]: ...
    async def arm(self, names: Iterable[str], profile: str | None = None) -> Sequence[Install]: ...
    async def disarm(self, names: Iterable[str]) -> Sequence[Install]: ...
    async def adopt(self, found: Sequence[ForeignLease]) -> tuple[int, list[str]]: ...


class ControlService:
    """Answers on the control socket of one state directory, whose lock the caller holds."""

    def __init__(self, state: Path, server: Controlled) -> None:
        self._path = socket_path(state)
        self._server = server
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Raises FastbootError where the socket can not be made."""
        app = web.Application(client_max_size=MAX_BODY)
        app.add_routes(
            [
                web.get("/status", self._get(self._server.status)),
                web.get("/leases", self._get(self._server.leases)),
                web.get("/nodes", self._get(self._server.nodes)),
                web.get("/media", self._get(self._server.media)),
                web.get("/why", self._why),
                web.get("/events", self._events),
                web.post("/reload", self._reload),
                web.post("/arm", self._arm),
                web.post("/disarm", self._disarm),
                web.post("/leases/import", self._import),
                web.post("/leases/{address}/release", self._release),
            ]
        )
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._path.unlink(missing_ok=True)  # left by a process that was killed: we hold the lock
            listener.bind(str(self._path))
            self._path.chmod(0o600)  # nobody connects before listen
        except OSError as error:
            listener.close()
            raise FastbootError(f"state: can not make {self._path}: {error.strerror}") from error
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        try:
            await self._runner.setup()
            await web.SockSite(self._runner, listener).start()
        except BaseException:
            listener.close()
            raise

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            with suppress(OSError):  # of a disk that failed and is read-only by now: the next start removes it
                self._path.unlink()

    def _get(self, facts: Callable[[], object]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            found = facts()
            if inspect.isawaitable(found):
                found = await found
            # Thousands of leases or nodes take longer than the loop may be busy.
            text = await asyncio.to_thread(lambda: json.dumps(plain(found)))
            return web.json_response(text=text)

        return answer

    async def _why(self, request: web.Request) -> web.Response:
        try:
            found = await self._server.why(*request.query.getall("of", ()))
        except FastbootError as error:
            return web.json_response({"error": printable(str(error))}, status=404)
        text = await asyncio.to_thread(lambda: json.dumps([plain(each.facts()) for each in found]))
        return web.json_response(text=text)

    async def _reload(self, request: web.Request) -> web.Response:
        try:
            changed = await self._server.reload()
        except NeedsRestart as error:
            return web.json_response({"error": str(error), "needs_restart": list(error.keys)}, status=409)
        except FastbootError as error:
            return web.json_response({"error": str(error)}, status=409)
        return web.json_response({"changed": list(changed)})

    async def _arm(self, request: web.Request) -> web.Response:
        return await self._change(request, "armed", self._server.arm)

    async def _disarm(self, request: web.Request) -> web.Response:
        return await self._change(request, "disarmed", lambda names, profile: self._server.disarm(names))

    async def _change(
        self,
        request: web.Request,
        what: str,
        change: Callable[[list[str], str | None], Awaitable[Sequence[Install]]],
    ) -> web.Response:
        try:
            names, profile = _asked(await request.read())
            found = await change(names, profile)
        except ValueError as error:
            return web.json_response({"error": f"this names no nodes: {plain(str(error))}"}, status=400)
        except FastbootError as error:
            return web.json_response({"error": str(error)}, status=409)
        return web.json_response({what: [plain(install_facts(install)) for install in found]})

    async def _release(self, request: web.Request) -> web.Response:
        text = request.match_info["address"]
        try:
            address = IPv4Address(text)
        except AddressValueError:
            return web.json_response({"error": f"{plain(text)} is no IPv4 address"}, status=400)
        if not self._server.release(address):
            return web.json_response({"error": f"{address} is not leased to anyone"}, status=404)
        return web.json_response({"released": str(address)})

    async def _import(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            found = await asyncio.to_thread(_foreign, body)
            count, left_out = await self._server.adopt(found)
        except ValueError as error:
            return web.json_response({"error": f"these are no leases: {plain(str(error))}"}, status=400)
        except FastbootError as error:
            return web.json_response({"error": str(error)}, status=409)
        return web.json_response({"imported": count, "left_out": [printable(text) for text in left_out]})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        events = self._server.events(replay=request.query.get("replay") == "1")
        try:
            await response.prepare(request)
            async for event in events:
                lines = [json.dumps(event_facts(each)) for each in (event, *events.take())]
                await response.write("".join(f"{line}\n" for line in lines).encode())
        except ConnectionResetError:
            pass  # the watcher left
        finally:
            events.close()
        return response


def _asked(body: bytes) -> tuple[list[str], str | None]:
    match json.loads(body):
        case {"nodes": [*names], **rest} if all(isinstance(name, str) for name in names):
            profile = rest.get("profile")
            if profile is None or isinstance(profile, str):
                return names, profile
    raise ValueError('write {"nodes": ["node01"], "profile": "rocky9"}')


def _foreign(body: bytes) -> list[ForeignLease]:
    facts = json.loads(body)
    if not isinstance(facts, list):
        raise ValueError("not a list")
    return [ForeignLease.of_facts(each) for each in facts]


def event_facts(event: Event) -> dict[str, object]:
    """Return an event as JSON knows it: time, kind, node, mac, details."""
    facts: dict[str, object] = {"time": event.time, "kind": event.kind}
    if event.node is not None:
        facts["node"] = plain(event.node)
    if event.mac is not None:
        facts["mac"] = plain(event.mac)
    facts["details"] = plain(event.details)
    return facts
