"""What an installer fetches: its second stage, what a repository says of itself, and packages."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import quote

from fastboot.lab._machines import Outcome
from fastboot.lab.rehearsal import repository
from fastboot.lab.rehearsal.fetching import Fetcher, came
from fastboot.lab.rehearsal.kinds import ANACONDA_DHCP, LINUX_DHCP
from fastboot.lab.rehearsal.machine import Machine, Place, Stopped, Way
from fastboot.lab.rehearsal.repository import Contents, File

_TEXT: Final = 1 << 18
"""Octets of .treeinfo, repomd.xml, Release, a kickstart file: boot/media.py reads as many."""
_LOOK: Final = 0.1
"""Seconds until a machine looks again whether an index has been read."""
_AGENT: Final = "libdnf"

Repositories = Generator[None, Outcome, list["Repository"]]
_Lists = Generator[None, Outcome, tuple[File, ...]]


@dataclass(frozen=True, slots=True)
class Repository:
    """Packages at a place, whose top is a file that `read` reads."""

    place: Place
    top: str
    read: Callable[[bytes], Contents]


class Installer:
    """Installs all machines; what one of them has read is read for all."""

    def __init__(self, fetcher: Fetcher, packages: int) -> None:
        """`packages`: the octets of packages that each machine fetches."""
        self._fetcher, self._most = fetcher, packages
        self._lists: dict[Place, Future[tuple[File, ...]]] = {}
        self._chosen: dict[tuple[Place, ...], tuple[Place, ...]] = {}
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="packages")
        self._notes: dict[str, None] = {}
        self._installed = False

    def close(self) -> None:
        self._reader.shutdown(cancel_futures=True)

    def assumed(self) -> list[str]:
        """Return what was assumed of packages, and why there were none."""
        if self._installed and not self._most:
            return ["none: --packages SIZE has each machine fetch so much of them, as an installer would"]
        return list(self._notes)

    def install(self, m: Machine, place: Place, arguments: str) -> Way:
        """Do what the installer of a kernel that came from `place` does by its command line."""
        urls, mirror = list(_urls(arguments)), _mirror(arguments)
        if not (urls or mirror):
            return
        self._installed = True
        yield from self._fetcher.lease(m, ANACONDA_DHCP if "inst." in arguments else LINUX_DHCP)
        found, answers = [mirror] if mirror else [], ""
        for key, url in urls:
            if key in _ANSWERS and not url.endswith(".iso"):
                answers = yield from self._answers(m, key, _place(place, url))
                named = re.findall(r"--(?:url|baseurl)[= ]([\"']?)((?:http|ftp)://\d\S*)\1", answers)
                found += [_rpms(_tree(_place(place, address))) for _, address in named if key in _KICKSTART]
            else:
                found += yield from self._medium(m, key, _place(place, url))
        if self._most:
            yield from self._install_from(m, list(dict.fromkeys(found)))
        if report := _DONE.search(answers):
            yield from self._fetcher.load(m, "report", _place(place, report[0]))

    def _answers(self, m: Machine, key: str, place: Place) -> Generator[None, Outcome, str]:
        # cloud-init joins the names to the URL as it is (NoCloud), and reads them in this order.
        names = ("meta-data", "user-data", "vendor-data") if key == _NO_CLOUD else ("",)
        text = ""
        for name in names:
            file = replace(place, path=place.path + name)
            text += _text((yield from self._fetcher.load(m, "answers", file, keep=_TEXT)))
        return text

    def _medium(self, m: Machine, key: str, place: Place) -> Repositories:
        # A file; or a tree, of which the installer is fetched that .treeinfo names.
        if PurePosixPath(place.path).suffix:
            yield from self._fetcher.load(m, "media", place)
            return []
        tree = _tree(place)
        info = yield from self._fetcher.load(m, "media", tree.beside(".treeinfo"), keep=_TEXT, may_miss=True)
        text = _text(info)
        image = re.search(r"^mainimage\s*=\s*(\S+)", text, re.MULTILINE)
        for name in [image[1]] if image else _SECOND_STAGES.get(key, ()):
            stage = yield from self._fetcher.load(m, "media", tree.beside(name), may_miss=not image)
            if came(stage):
                break
        if key == "inst.stage2":
            return []
        named = re.findall(r"^repository\s*=\s*(\S+)", text, re.MULTILINE)
        return [_rpms(tree if name == "." else _tree(tree.beside(name))) for name in dict.fromkeys(named or ["."])]

    def _install_from(self, m: Machine, repositories: Sequence[Repository]) -> Way:
        lists: dict[Place, tuple[File, ...]] = {}
        for each in repositories:
            if files := (yield from self._index(m, each)):
                lists[each.place] = files
        key = tuple(lists)
        if key and key not in self._chosen:
            self._chosen[key] = self._choose(lists)
        if key:
            yield from self._fetcher.fetch_all(m, "packages", self._chosen[key], _AGENT)

    def _index(self, m: Machine, of: Repository) -> _Lists:
        # All machines fetch it; it is kept and read for the first.
        top = yield from self._fetcher.load(m, "packages", of.place.beside(of.top), keep=_TEXT, may_miss=True)
        if not came(top):
            self._note(f"none from {of.place}: there is no {of.top}")
            return ()
        try:
            contents = of.read(top.content or b"")
            for file in contents.files:
                keep = file.size if file == contents.index and of.place not in self._lists else 0
                loaded = yield from self._fetcher.load(m, "packages", _below(of.place, file.name), keep=keep)
                if keep and of.place not in self._lists:
                    self._lists[of.place] = self._reader.submit(
                        repository.packages, contents.index, loaded.content or b""
                    )
            while not self._lists[of.place].done():
                yield from self._fetcher.wait(m, "packages", f"the packages of {of.place} are read", _LOOK)
            return self._lists[of.place].result()
        except repository.Unreadable as error:
            self._note(f"none from {of.place}: {error}")
            return ()

    def _choose(self, lists: dict[Place, tuple[File, ...]]) -> tuple[Place, ...]:
        everything = [(place, file) for place, files in lists.items() for file in files]
        places = {id(file): place for place, file in everything}
        chosen = repository.some([file for _, file in everything], self._most)
        octets = sum(file.size for file in chosen)
        self._note(
            f"{len(chosen)} of {len(everything)}, {octets / 1e6:,.1f} MB for each machine, taken at random from "
            + " and ".join(map(str, lists))
        )
        return tuple(_below(places[id(file)], file.name) for file in chosen)

    def _note(self, text: str) -> None:
        self._notes[text] = None


_KICKSTART: Final = ("inst.ks", "ks")
_NO_CLOUD: Final = "ds"
_ANSWERS: Final = (*_KICKSTART, _NO_CLOUD, "url", "autoyast", "inst.auto")
"""Words of the command line that name an answer file: protocol-facts.md C. "url" is Debian's, and
Ubuntu's word for an image."""
_DONE: Final = re.compile(r"http://\d[\w.:]*/node/\w+/done")
_SECOND_STAGES: Final = {
    **dict.fromkeys(("inst.repo", "inst.stage2", "method"), ("images/install.img", "LiveOS/squashfs.img")),
    "install": ("boot/x86_64/root",),
}
"""Where an installer looks that no .treeinfo leads, by what names the medium: anaconda-lib.sh, linuxrc."""


def _rpms(place: Place) -> Repository:
    return Repository(place, "repodata/repomd.xml", repository.repomd)


def _mirror(arguments: str) -> Repository | None:
    # Debian's is in several words.
    said = dict(re.findall(r"\bmirror/(\w+(?:/\w+)?)=(\S+)", arguments))
    scheme, suite = said.get("protocol", "http"), said.get("suite", "")
    host, path = said.get(f"{scheme}/hostname", ""), said.get(f"{scheme}/directory", "")
    if not (host[:1].isdigit() and path and suite):
        return None
    place = _tree(Place("", IPv4Address(0), 0, "").find(f"{scheme}://{host}{path}"))
    return Repository(place, f"dists/{suite}/Release", partial(repository.release, suite=suite))


def _tree(place: Place) -> Place:
    return replace(place, path=place.path.rstrip("/") + "/")


def _below(tree: Place, name: str) -> Place:
    return replace(tree, path=tree.path + (quote(name) if tree.scheme == "http" else name))


def _place(place: Place, url: str) -> Place:
    try:
        return place.find(url)
    except ValueError as error:
        raise Stopped("media", f"{place} names {url!r}: {error}") from error


def _text(outcome: Outcome) -> str:
    return (outcome.content or b"").decode("utf-8", "replace") if came(outcome) else ""


def _urls(arguments: str) -> Iterator[tuple[str, str]]:
    """Yield what a kernel command line has installers fetch, each with the word that says so."""
    for word in arguments.split():
        match = re.fullmatch(r"""([\w.-]+)=["']?(?:live:|nocloud-net;s=)?((?:http|ftp)://\d[^"']*)["']?""", word)
        if match:
            yield match[1], match[2]
