"""Which shim a machine is handed: with Secure Boot, one starts only what those signed whose certificate it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fastboot.boot.chain import Chains, Look
from fastboot.boot.loaders import CHOICES
from fastboot.boot.program import Kind, Program


@dataclass(frozen=True, slots=True)
class Judgement:
    """Whether the chain of a boot file starts the kernels that it is meant for; `flaw` says why not."""

    loader: str
    flaw: str = ""


class Shims:
    """Chooses between the shim of this system and those on the media, each of which knows its distribution only.

    What was chosen is kept until `forget`. For one thread.
    """

    def __init__(
        self,
        chains: Chains,
        look: Look,
        kernels: Callable[[str | None], Iterable[str]],
        media: Callable[[str | None], Iterable[str]],
        http: str | None = None,
    ) -> None:
        """`kernels` are the paths of what a profile boots, and `media` the names of the media with boot programs,
        its own first; of None: what a machine without a profile may boot. `http` is the URL of the one namespace.
        """
        self._chains, self._look, self._kernels, self._media, self._http = chains, look, kernels, media, http
        self._chosen: dict[tuple[str, str | None], str | None] = {}

    def forget(self) -> None:
        """Choose again: media have changed."""
        self._chosen.clear()

    def choose(self, class_: str, usual: str | None, profile: str | None) -> str | None:
        """Return the boot file of a class for machines with this profile: the usual one, unless Secure Boot would
        end there and a medium has one that gets to the kernel."""
        key = class_, profile
        if key not in self._chosen:
            judged = self.judge(class_, usual, profile)
            self._chosen[key] = next((each.loader for each in judged if not each.flaw), usual)
        return self._chosen[key]

    def judge(self, class_: str, usual: str | None, profile: str | None) -> list[Judgement]:
        """Return the boot files that a class may be given, the usual one first; none where no kernel is signed."""
        shim = next((name for name in CHOICES.get(class_, ()) if name.startswith("shim")), None)
        where = f"{self._http}/boot" if class_.startswith("http-") else "boot"
        if shim is None or (class_.startswith("http-") and self._http is None):
            return []
        cpu = shim.removeprefix("shim").removesuffix(".efi")
        programs = {path: self._look(path) for path in self._kernels(profile) if "://" not in path}
        kernels = {path: each for path, each in programs.items() if each and each.issuers and each.cpu == cpu}
        if not kernels:
            return []
        own = (f"{where}/{name}/{shim}" for name in self._media(profile))
        files = (usual, *own) if usual else own
        return [Judgement(loader, self._flaw(class_, loader, kernels)) for loader in files]

    def _flaw(self, class_: str, loader: str, kernels: dict[str, Program]) -> str:
        chain = self._chains.of(class_, loader)
        shim = chain.hops[0].program
        if shim is None or shim.kind is not Kind.SHIM:
            return "it is no shim" if shim else "it is missing"
        if fault := chain.flaw or chain.doubt:
            return fault
        for path, kernel in kernels.items():
            if kernel.altered:
                return f"{path} was altered after it had been signed"
            if not shim.trusts(kernel):
                return f"it does not know {' and '.join(kernel.signers)}, who signed {path}"
        return ""
