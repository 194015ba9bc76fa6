"""What a DHCP service of the native core must decide: `decide` is asked, its verdict encoded and given back."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Final, Protocol

import structlog

from fastboot.model import IGNORE, BootRequest, Event, Node, Plan, Scope, Verdict
from fastboot.services.dhcp_events import About
from fastboot.services.dhcp_plan import EncodedPlan, architecture_of, features_of, stage_of
from fastboot.services.links import Link

log = structlog.get_logger(component="dhcp")

Decide = Callable[[BootRequest], Verdict | Awaitable[Verdict]]
"""What a machine boots; None means what the configuration says."""
Encode = Callable[[BootRequest, Plan, int], EncodedPlan | None]
"""Makes of a plan and its tag what is sent. Raises ValueError or UnicodeError where it can not be sent."""

DECIDE_WITHIN = 30.0
"""Seconds after which a decision is given up; its request is forgotten after 2."""
ABOUT_ROOM = 65_536
REMARKS = 256
"""Remarks that are told between two reloads, each once: a stranger can send 65,000 architectures."""
TELL_AGAIN: Final = 60.0
"""Seconds until the next event about the same machine that gets no answer for the same reason."""
SILENCES: Final = 1024
"""Machines that this is known of."""
SILENT: Final = None
"""The encoded plan of IGNORE."""


class Core(Protocol):
    """What is asked of the native class that holds the plan table and the misses."""

    @property
    def asking(self) -> int: ...
    def misses(
        self, most: int = ..., /
    ) -> list[tuple[bytes, int, int, int, bytes, int, bytes, bytes, bytes, bytes, bytes, int, bytes, bytes]]: ...
    def answer(self, token: bytes, plan: EncodedPlan | None, scope: str, now: int, /) -> None: ...
    def drop(self, token: bytes, /) -> None: ...


class Decisions:
    """Decides for a native core what it has not met before.

    `step` is called after a decision that came later, so that its reply leaves. `now` is the clock that the core
    is driven by, in nanoseconds. Belongs to the loop's thread.
    """

    def __init__(
        self,
        core: Core,
        links: Sequence[Link],
        decide: Decide,
        encode: Encode,
        emit: Callable[[Event], None],
        step: Callable[[], None],
        now: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.counts = {"decide_failed": 0, "undecided": 0}
        self._core, self._links, self._now = core, links, now
        self._decide, self._encode, self._emit, self._step = decide, encode, emit, step
        self._networks: Sequence[IPv4Network] = ()
        self._nodes: Sequence[Node] = ()
        self._about: dict[int, About] = {}
        self._tags: dict[About, int] = {}
        self._failed: set[str] = set()
        self._remarked: set[str] = set()
        self._silences: dict[tuple[str, str], float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def configure(self, networks: Sequence[IPv4Network], nodes: Sequence[Node]) -> None:
        """Take what the subnets and nodes in a miss are indices of."""
        self._networks, self._nodes = networks, nodes
        self._remarked.clear()

    def ask(self) -> None:
        """Decide, or begin to, everything that the core waits for."""
        while self._core.asking:
            # One at a time: the answer may be that of the next ones too.
            for miss in self._core.misses(1):
                self._ask(*miss)

    async def stop(self) -> None:
        """Give up the decisions under way."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def about(self, tag: int) -> About | None:
        """Return what a plan's tag stands for."""
        return self._about.get(tag)

    def _ask(
        self, token: bytes, link: int, subnet: int, server: int, mac: bytes, node: int, architecture: bytes,
        vendor: bytes, user: bytes, ipxe: bytes, machine_id: bytes, relay: int, circuit_id: bytes,
        remote_id: bytes,
    ) -> None:  # fmt: skip
        request = BootRequest(
            mac=mac.hex(":"),
            interface=self._links[link].name,
            network=self._networks[subnet],
            server=IPv4Address(server),
            stage=stage_of(vendor, user, ipxe),
            architecture=architecture_of(architecture, vendor),
            vendor_class=vendor,
            user_class=user,
            ipxe_features=features_of(ipxe),
            node=self._nodes[node] if node >= 0 else None,
            machine_id=machine_id,
            relay=IPv4Address(relay) if relay else None,
            circuit_id=circuit_id,
            remote_id=remote_id,
        )
        try:
            verdict = self._decide(request)
        except Exception as error:  # decide is the embedder's: whatever it raises must not stop the loop
            self._fail(token, request, error)
            return
        if inspect.isawaitable(verdict):
            task = asyncio.ensure_future(self._answer_later(token, request, verdict))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._answer(token, request, verdict)

    async def _answer_later(self, token: bytes, request: BootRequest, verdict: Awaitable[Verdict]) -> None:
        try:
            async with asyncio.timeout(DECIDE_WITHIN):
                decided = await verdict
        except Exception as error:  # as in _ask
            self._fail(token, request, error)
            return
        self._answer(token, request, decided)
        self._step()

    def _answer(self, token: bytes, request: BootRequest, verdict: Verdict) -> None:
        now = self._now()
        if verdict is None:
            self.counts["undecided"] += 1
            self._unanswered(request, "undecided")
            self._core.drop(token)
        elif verdict is IGNORE:
            self._core.answer(token, SILENT, Scope.MACHINE.value, now)
        else:
            try:
                plan = self._encode(request, verdict, self._tag(request, verdict))
            except Exception as error:  # as in _ask: it may be no Plan at all
                self._fail(token, request, error)
                return
            self._core.answer(token, plan, verdict.scope.value, now)
            self._remark(request, verdict)

    def _remark(self, request: BootRequest, plan: Plan) -> None:
        if plan.remark and plan.remark not in self._remarked and len(self._remarked) < REMARKS:
            self._remarked.add(plan.remark)
            about = About.of(request, plan)
            details = {"text": plan.remark, "interface": request.interface, **about.details()}
            self._emit(Event(time.time(), "dhcp.loader_warning", request.mac, details=details))

    def _tag(self, request: BootRequest, plan: Plan) -> int:
        about = About.of(request, plan)
        tag = self._tags.get(about)
        if tag is None:
            tag = len(self._tags) + 1
            if tag <= ABOUT_ROOM:
                self._tags[about], self._about[tag] = tag, about
        return tag

    def _unanswered(self, request: BootRequest, reason: str) -> None:
        """Tell of a machine that gets no answer, once in a while for each."""
        key, now = (request.mac, reason), time.monotonic()
        if now - self._silences.get(key, float("-inf")) < TELL_AGAIN:
            return
        self._silences.pop(key, None)
        self._silences[key] = now
        if len(self._silences) > SILENCES:
            del self._silences[next(iter(self._silences))]
        details = {"interface": request.interface, "reason": reason, "stage": request.stage.value}
        self._emit(Event(time.time(), "dhcp.unanswered", request.mac, details=details))

    def _fail(self, token: bytes, request: BootRequest, error: Exception) -> None:
        self.counts["decide_failed"] += 1
        self._core.drop(token)
        self._unanswered(request, "decide_failed")
        kind = type(error).__name__
        if kind not in self._failed:
            self._failed.add(kind)
            log.error("dhcp.decide_failed", text=f"{kind}: {error}; machines that it concerns get no answer")
