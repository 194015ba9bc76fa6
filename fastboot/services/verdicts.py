"""What machines are told to boot: what an embedding program's `decide` says over the policy."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from dataclasses import replace

from fastboot.boot.gate import Gate
from fastboot.boot.policy import Policy, Told
from fastboot.model import BootRequest, Plan, Scope, Verdict
from fastboot.services.dhcp_decisions import Decide


class Verdicts:
    """Asks `decide` first, then the policy; to both a node has the profile that it is armed with. For the loop's
    thread."""

    def __init__(self, decide: Decide | None, policy: Callable[[], Policy], gate: Gate, told: Told) -> None:
        """`policy` gives the one that counts now; `told` is given what machines were told."""
        self._decide, self._policy, self._gate, self._told = decide, policy, gate, told

    def decide(self, request: BootRequest) -> Verdict | Awaitable[Verdict]:
        """Say what a machine boots."""
        if request.node:
            self._gate.asked(request)
            if (node := self._gate.effective(request.node)) is not request.node:
                request = replace(request, node=node)
        verdict = self._decide(request) if self._decide else None
        if inspect.isawaitable(verdict):
            return self._decide_later(verdict, request)
        return self._settle(verdict, request)

    async def _decide_later(self, verdict: Awaitable[Verdict], request: BootRequest) -> Verdict:
        return self._settle(await verdict, request)

    def _settle(self, verdict: Verdict, request: BootRequest) -> Verdict:
        verdict = self._policy().decide(request) if verdict is None else verdict
        if isinstance(verdict, Plan) and request.node and self._gate.is_open(request.node):
            verdict = replace(verdict, scope=Scope.ONCE)  # that its firmware asks again must be seen
        return self._told.keep(request, verdict)
