"""The one namespace from outside: what is served, what is refused, and that nothing else ever is."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastboot._core import Source
from fastboot.boot.catalog import Catalog
from fastboot.boot.firmware import QUIRKS
from fastboot.boot.loaders import Loaders, find_loaders
from fastboot.boot.render import Renderer
from fastboot.boot.tree import MAX_LINKS, Entry
from fastboot.config import Config, Media
from fastboot.model import Client, Node, Profile, Reason, Refusal

CLIENT = Client(IPv4Address("10.0.0.9"), IPv4Address("10.0.0.1"), "tftp")
Make = Callable[..., Catalog]


@pytest.fixture
def make() -> Iterator[Make]:
    catalogs = []

    def build(
        *roots: Path,
        media: dict[str, Path] | None = None,
        links: tuple[Path, ...] = (),
        loaders: Loaders | None = None,
        renderer: Renderer | None = None,
    ) -> Catalog:
        tables = tuple(Media(name=name, path=path) for name, path in (media or {}).items())
        config = Config(interface=("lo",), roots=roots, media=tables, allow_links=links)
        catalogs.append(Catalog(config, loaders, renderer))
        return catalogs[-1]

    yield build
    for catalog in catalogs:
        catalog.close()


def put(path: Path, text: str = "inside") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def text_of(found: Source | Refusal) -> str:
    assert isinstance(found, Source), found
    return found.read().decode()


def reason_of(found: object) -> Reason:
    assert isinstance(found, Refusal), found
    return found.reason


def names_of(found: list[Entry] | Refusal) -> list[str]:
    assert isinstance(found, list), found
    return [entry.name for entry in found]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.parametrize(
    "name",
    [
        "a/linux",
        "/a/linux",
        "///a///linux",  # GRUB writes one slash, syslinux.efi joins with two (boot-clients.md, capture 5)
        "a\\linux",  # shim takes either
        "\\a\\linux",
        "./a/./linux",
        "a/b/../linux",
        "missing/../a/linux",
        "a/linux\udcff",  # option 67 without an end
    ],
)
def test_spellings_of_a_name(tmp_path: Path, make: Make, name: str) -> None:
    put(tmp_path / "a/linux")
    catalog = make(tmp_path)
    assert text_of(catalog.resolve(name, CLIENT)) == "inside"
    assert catalog.quirks["option-67-unterminated"] == name.endswith("\udcff")
    assert catalog.quirks["backslashes"] == ("\\" in name)
    assert catalog.quirks["doubled-slashes"] == ("//" in name)
    assert set(catalog.quirks) <= set(QUIRKS)


def test_only_tftp_is_asked_for_names_without_an_end(tmp_path: Path, make: Make) -> None:
    """HTTP and FTP have no part in option 67: `GET /%ff` is for a file of that name."""
    put(tmp_path / "a/linux")
    catalog = make(tmp_path)
    for protocol in ("http", "ftp"):
        client = replace(CLIENT, protocol=protocol)  # type: ignore[arg-type]
        for name in ("/\udcff", "a/linux\udcff"):
            refusal = catalog.resolve(name, client)
            assert isinstance(refusal, Refusal)
            assert refusal.reason is Reason.MISSING
            assert catalog.list(name, client) == refusal
    assert not catalog.quirks


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", Reason.DIRECTORY),
        ("/", Reason.DIRECTORY),
        ("a", Reason.DIRECTORY),
        ("a/", Reason.DIRECTORY),
        ("media", Reason.DIRECTORY),
        ("nothing", Reason.MISSING),
        ("a/linux/below", Reason.MISSING),
        ("A/LINUX", Reason.MISSING),
        ("x" * 300, Reason.MISSING),
        ("x/" * 3000, Reason.MISSING),
        ("boot/" * 3000, Reason.MISSING),
        ("\ud800", Reason.MISSING),
        ("..", Reason.OUTSIDE),
        ("../a/linux", Reason.OUTSIDE),
        ("a/../../a/linux", Reason.OUTSIDE),
        ("..\\..\\etc\\passwd", Reason.OUTSIDE),
        ("/media/../../etc/passwd", Reason.OUTSIDE),
        ("a/linux\0", Reason.FORBIDDEN),
        ("a/li\nnux", Reason.FORBIDDEN),
        ("a/\x7f", Reason.FORBIDDEN),
    ],
)
def test_names_that_are_refused(tmp_path: Path, make: Make, name: str, reason: Reason) -> None:
    put(tmp_path / "root/a/linux")
    catalog = make(tmp_path / "root", media={"m": tmp_path})
    found = catalog.resolve(name, CLIENT)
    assert reason_of(found) is reason
    assert isinstance(found, Refusal)
    assert str(tmp_path) not in found.text
    if reason is not Reason.DIRECTORY:
        assert reason_of(catalog.stat(name, CLIENT)) is reason
        assert reason_of(catalog.list(name, CLIENT)) is reason


def test_undecodable_names_are_served(tmp_path: Path, make: Make) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9")).write_text("latin")
    assert text_of(make(tmp_path).resolve("caf\udce9", CLIENT)) == "latin"


def test_first_root_wins_and_directories_are_merged(tmp_path: Path, make: Make) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    put(one / "d/both", "first")
    put(two / "d/both", "second")
    put(two / "d/other", "other")
    put(one / "x")
    put(two / "x/file")
    catalog = make(one, two)
    assert text_of(catalog.resolve("d/both", CLIENT)) == "first"
    assert text_of(catalog.resolve("d/other", CLIENT)) == "other"
    assert names_of(catalog.list("d", CLIENT)) == ["both", "other"]
    assert names_of(catalog.list("", CLIENT)) == ["d", "x"]
    assert reason_of(catalog.list("x", CLIENT)) is Reason.MISSING  # a file, by the first root
    assert catalog.stat("x", CLIENT) == Entry("x", False, 6, (one / "x").stat().st_mtime_ns / 1e9)


def test_media_hide_what_roots_have_in_their_place(tmp_path: Path, make: Make) -> None:
    put(tmp_path / "root/media/m/old", "root")
    put(tmp_path / "root/media/n/kept", "root")
    put(tmp_path / "tree/new", "media")
    catalog = make(tmp_path / "root", media={"m": tmp_path / "tree"})
    assert text_of(catalog.resolve("/media/m/new", CLIENT)) == "media"
    assert reason_of(catalog.resolve("/media/m/old", CLIENT)) is Reason.MISSING
    assert text_of(catalog.resolve("/media/n/kept", CLIENT)) == "root"
    assert names_of(catalog.list("media", CLIENT)) == ["m", "n"]
    assert names_of(catalog.list("media/m", CLIENT)) == ["new"]
    found = catalog.stat("media/m", CLIENT)
    assert isinstance(found, Entry)
    assert found.is_dir


def test_without_any_root(make: Make) -> None:
    catalog = make()
    assert catalog.list("/", CLIENT) == []
    assert reason_of(catalog.resolve("/", CLIENT)) is Reason.DIRECTORY
    assert reason_of(catalog.resolve("x", CLIENT)) is Reason.MISSING


# Links


def test_links(tmp_path: Path, make: Make) -> None:
    root, other, secret = tmp_path / "root", tmp_path / "other", tmp_path / "secret"
    put(root / "d/file")
    put(other / "sub/shared", "shared")
    put(secret / "file", "secret")
    links = {
        "relative": "d/file",
        "up": "d/../d/file",
        "absolute": f"{root}/d/file",
        "absolute-dir": f"{root}/d",
        "allowed": f"{other}/sub/shared",
        "allowed-dir": f"{other}/sub",
        "twice": "allowed-dir/shared",
        "back": f"{other}/back",
        "outside": f"{secret}/file",
        "outside-dir": f"{secret}",
        "climbing": "../secret/file",
        "dotted": f"{other}/../secret/file",
        "nearly": f"{other}-not/file",
        "dangling": "nowhere",
        "circle": "circle",
        "etc": "/etc",
    }
    for name, target in links.items():
        (root / name).symlink_to(target)
    (other / "back").symlink_to(root / "d/file")
    catalog = make(root, links=(other,))

    served = {
        name: text_of(found)
        for name in [*links, "absolute-dir/file", "allowed-dir/shared", "outside-dir/file", "etc/passwd"]
        if isinstance(found := catalog.resolve(name, CLIENT), Source)
    }
    assert served == {
        **dict.fromkeys(("relative", "up", "absolute", "absolute-dir/file", "back"), "inside"),
        **dict.fromkeys(("allowed", "twice", "allowed-dir/shared"), "shared"),
    }
    reasons = {
        name: reason_of(catalog.resolve(name, CLIENT)) for name in (*links, "etc/passwd") if name not in served
    }
    assert reasons == {
        **dict.fromkeys(("absolute-dir", "allowed-dir"), Reason.DIRECTORY),
        **dict.fromkeys(("outside", "outside-dir", "climbing", "dotted", "nearly", "etc"), Reason.OUTSIDE),
        "etc/passwd": Reason.OUTSIDE,
        "dangling": Reason.MISSING,
        "circle": Reason.BROKEN,
    }
    listed = names_of(catalog.list("", CLIENT))
    assert sorted(listed) == sorted(
        ["d", *(name for name in served if "/" not in name), "absolute-dir", "allowed-dir"]
    )
    assert names_of(catalog.list("allowed-dir", CLIENT)) == ["shared"]
    assert reason_of(catalog.list("outside-dir", CLIENT)) is Reason.OUTSIDE
    complaints = "\n".join(catalog.check())
    for name in ("outside", "outside-dir", "climbing", "dotted", "nearly", "dangling", "circle", "etc"):
        assert f"{root}/{name}: " in complaints
    assert f"{root}/allowed: " not in complaints


def test_absolute_links_that_chase_each_other_end(tmp_path: Path, make: Make) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    (tmp_path / "grow").symlink_to(tmp_path / "grow/grow")
    catalog = make(tmp_path)
    assert reason_of(catalog.resolve("a", CLIENT)) is Reason.BROKEN
    assert reason_of(catalog.stat("grow", CLIENT)) is Reason.BROKEN
    for step in range(MAX_LINKS - 1):
        (tmp_path / f"s{step}").symlink_to(tmp_path / f"s{step + 1}")
    put(tmp_path / f"s{MAX_LINKS - 1}", "end")
    assert text_of(catalog.resolve("s0", CLIENT)) == "end"


def test_a_root_that_is_itself_a_link(tmp_path: Path, make: Make) -> None:
    put(tmp_path / "real/file")
    (tmp_path / "real/by-name").symlink_to(tmp_path / "name/file")
    (tmp_path / "real/by-path").symlink_to(tmp_path / "real/file")
    (tmp_path / "name").symlink_to("real")
    catalog = make(tmp_path / "name")
    for name in ("file", "by-name", "by-path"):
        assert text_of(catalog.resolve(name, CLIENT)) == "inside"


# What is no regular file


def test_special_files(tmp_path: Path, make: Make) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        cwd = os.open(tmp_path, os.O_PATH)
        unix.bind(f"/proc/self/fd/{cwd}/socket")  # short enough for sun_path, wherever the test runs
        os.close(cwd)
        catalog = make(tmp_path, media={"dev": Path("/dev"), "proc": Path("/proc/self")})
        assert reason_of(catalog.resolve("fifo", CLIENT)) is Reason.SPECIAL
        assert reason_of(catalog.resolve("socket", CLIENT)) is Reason.SPECIAL
        assert reason_of(catalog.resolve("media/dev/null", CLIENT)) is Reason.SPECIAL
        assert names_of(catalog.list("", CLIENT)) == ["media"]
        # Magic links lead anywhere, whatever their text says.
        assert reason_of(catalog.resolve("media/proc/root/etc/passwd", CLIENT)) is Reason.BROKEN
        assert reason_of(catalog.stat("media/proc/exe", CLIENT)) is Reason.BROKEN
        assert reason_of(catalog.list("media/proc/cwd", CLIENT)) is Reason.BROKEN


def test_after_privileges_are_dropped(
    tmp_path: Path, make: Make, as_nobody: Callable[[], AbstractContextManager[None]]
) -> None:
    # pytest's directories are closed to other users: the descriptor that was opened before is enough.
    root = tmp_path / "root"
    put(root / "open")
    put(root / "closed").chmod(0)
    put(root / "private/file")
    (root / "private").chmod(0)
    root.chmod(0o755)
    catalog = make(root)
    with as_nobody():
        assert text_of(catalog.resolve("open", CLIENT)) == "inside"
        for name in ("closed", "private/file"):
            assert reason_of(catalog.resolve(name, CLIENT)) is Reason.FORBIDDEN
        assert reason_of(catalog.list("private", CLIENT)) is Reason.FORBIDDEN
        complaints = catalog.check()
    (root / "private").chmod(0o700)
    assert [line.partition(":")[0] for line in complaints] == [f"{root}/closed", f"{root}/private"]


# Sharing and replacement


def test_clients_of_one_file_share_it(tmp_path: Path, make: Make) -> None:
    put(tmp_path / "file")
    (tmp_path / "link").symlink_to("file")
    catalog = make(tmp_path)
    before = descriptors()
    sources = [catalog.resolve("file" if turn % 2 else "/link", CLIENT) for turn in range(100)]
    assert len({id(source) for source in sources}) == 1
    assert descriptors() == before + 1
    sources.clear()
    assert descriptors() == before


def test_a_file_replaced_by_rename(tmp_path: Path, make: Make) -> None:
    put(tmp_path / "file", "old")
    catalog = make(tmp_path)
    old = catalog.resolve("file", CLIENT)
    put(tmp_path / "new", "new one").rename(tmp_path / "file")
    new = catalog.resolve("file", CLIENT)
    assert text_of(old) == "old"
    assert text_of(new) == "new one"
    assert catalog.resolve("file", CLIENT) is new


def test_a_file_written_in_place(tmp_path: Path, make: Make) -> None:
    put(tmp_path / "file", "before")
    catalog = make(tmp_path)
    old = catalog.resolve("file", CLIENT)
    with (tmp_path / "file").open("a") as file:
        file.write(" and after")
    new = catalog.resolve("file", CLIENT)
    assert isinstance(old, Source)
    assert not old.unchanged()
    assert text_of(new) == "before and after"
    assert catalog.resolve("file", CLIENT) is new


def test_a_removed_file_is_missing_though_still_being_sent(tmp_path: Path, make: Make) -> None:
    put(tmp_path / "file")
    catalog = make(tmp_path)
    running = catalog.resolve("file", CLIENT)
    (tmp_path / "file").unlink()
    assert reason_of(catalog.resolve("file", CLIENT)) is Reason.MISSING
    assert text_of(running) == "inside"


def test_close_returns_every_descriptor(tmp_path: Path) -> None:
    put(tmp_path / "system/usr/lib/PXELINUX/pxelinux.0")
    before = descriptors()
    config = Config(
        interface=("lo",), roots=(tmp_path,), allow_links=(tmp_path,), media=(Media(name="m", path=tmp_path),)
    )
    catalog = Catalog(config, find_loaders(system=tmp_path / "system"))
    source = catalog.resolve("boot/pxelinux.0", CLIENT)
    assert descriptors() == before + 5
    catalog.close()
    assert text_of(source) == "inside"
    del source
    assert descriptors() == before


# Listings


def test_a_listing_says_what_stat_says(tmp_path: Path, make: Make) -> None:
    put(tmp_path / "b", "four")
    put(tmp_path / "d/f")
    (tmp_path / "link").symlink_to("b")
    for hostile in ("new\nline", "back\\slash", "end\udcff"):
        (tmp_path / hostile).write_text("no client can ask for it")
    catalog = make(tmp_path, media={"m": tmp_path})
    entries = catalog.list("/", CLIENT)
    assert isinstance(entries, list)
    assert [(entry.name, entry.is_dir, entry.size) for entry in entries] == [
        ("b", False, 4),
        ("d", True, 0),
        ("link", False, 4),
        ("media", True, 0),
    ]
    assert [catalog.stat(entry.name, CLIENT) for entry in entries] == entries
    assert entries[0].mtime == (tmp_path / "b").stat().st_mtime_ns / 1e9


def test_a_large_directory(tmp_path: Path, make: Make) -> None:
    for number in range(3000):
        (tmp_path / f"{number:05}").touch()
    before = descriptors()
    assert names_of(make(tmp_path).list("", CLIENT)) == [f"{number:05}" for number in range(3000)]
    assert descriptors() == before + 1


def test_files_that_vanish_during_a_listing(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "stays")
    put(tmp_path / "goes")
    scandir = os.scandir

    def vanish(fd: int) -> os._ScandirIterator[str]:
        (tmp_path / "goes").unlink(missing_ok=True)
        return scandir(fd)

    catalog = make(tmp_path)
    monkeypatch.setattr(os, "scandir", vanish)
    assert names_of(catalog.list("", CLIENT)) == ["stays"]


# Loaders and rendered files


def system(tmp_path: Path) -> Path:
    put(tmp_path / "usr/lib/PXELINUX/pxelinux.0", "pxelinux")
    put(tmp_path / "usr/lib/syslinux/modules/bios/ldlinux.c32", "ldlinux")
    put(tmp_path / "usr/lib/syslinux/modules/bios/README", "not a module")
    put(tmp_path / "usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed", "grub")
    put(tmp_path / "usr/lib/grub/x86_64-efi-signed/other", "not a loader")
    return tmp_path


def test_loaders(tmp_path: Path, make: Make) -> None:
    loaders = find_loaders(system=system(tmp_path / "system"))
    catalog = make(put(tmp_path / "root/boot/own").parents[1], loaders=loaders)
    for name, text in {"pxelinux.0": "pxelinux", "ldlinux.c32": "ldlinux", "grubx64.efi": "grub"}.items():
        assert text_of(catalog.resolve(f"boot/{name}", CLIENT)) == text
    assert names_of(catalog.list("boot", CLIENT)) == ["grubx64.efi", "ldlinux.c32", "own", "pxelinux.0"]
    for name in ("README", "other", "grubnetx64.efi.signed", "../PXELINUX/pxelinux.0"):
        assert reason_of(catalog.resolve(f"boot/{name}", CLIENT)) is Reason.MISSING
    assert not [line for line in catalog.check() if "boot.ipxe" not in line]


def test_a_loader_is_found_at_the_top_too(tmp_path: Path, make: Make) -> None:
    """Where a shim looks if only option 67 named it (boot-clients.md, capture 1)."""
    catalog = make(
        put(tmp_path / "root/pxelinux.0", "own").parent, loaders=find_loaders(system=system(tmp_path / "system"))
    )
    assert text_of(catalog.resolve("grubx64.efi", CLIENT)) == "grub"
    assert text_of(catalog.resolve("pxelinux.0", CLIENT)) == "own"
    assert names_of(catalog.list("", CLIENT)) == ["boot", "pxelinux.0"]
    assert reason_of(catalog.resolve("grubaa64.efi", CLIENT)) is Reason.MISSING


def test_an_own_loader_beats_the_one_of_the_system(tmp_path: Path, make: Make) -> None:
    put(tmp_path / "root/boot/pxelinux.0", "own")
    catalog = make(tmp_path / "root", loaders=find_loaders(system=system(tmp_path / "system")))
    assert text_of(catalog.resolve("boot/pxelinux.0", CLIENT)) == "own"


def test_missing_loaders_are_complained_of_with_their_package(tmp_path: Path, make: Make) -> None:
    complaints = make(loaders=find_loaders(system=tmp_path)).check()
    assert any("pxelinux syslinux-common" in line for line in complaints)
    assert any("grub-efi-amd64-signed" in line for line in complaints)
    put(tmp_path / "usr/lib/PXELINUX/pxelinux.0")
    assert any("ldlinux.c32" in line for line in make(loaders=find_loaders(system=tmp_path)).check())
    overridden = make(loaders=find_loaders({"uefi-x64": "own.efi"}, tmp_path)).check()
    assert not [line for line in overridden if "uefi-x64" in line]


def test_names_beside_the_loader_are_searched_in_the_roots(tmp_path: Path, make: Make) -> None:
    # pxelinux.0 was loaded as boot/pxelinux.0 and asks for "linux" as boot/linux.
    put(tmp_path / "root/linux", "kernel")
    put(tmp_path / "root/pxelinux.cfg/default", "own")
    renderer = Renderer((), ())
    catalog = make(tmp_path / "root", renderer=renderer)
    assert text_of(catalog.resolve("boot/linux", CLIENT)) == "kernel"
    assert text_of(catalog.resolve("boot/pxelinux.cfg/default", CLIENT)) == "own"
    assert reason_of(catalog.resolve("boot/pxelinux.cfg", CLIENT)) is Reason.MISSING
    assert reason_of(catalog.list("boot", CLIENT)) is Reason.MISSING
    assert reason_of(catalog.resolve("boot/boot/linux", CLIENT)) is Reason.MISSING


def test_rendered_files(tmp_path: Path, make: Make) -> None:
    put(tmp_path / "grub/grub.cfg", "own")
    (tmp_path / "pxelinux.cfg").mkdir()
    node = Node("n1", ("52:54:00:00:00:01",), profile="live")
    profile = Profile("live", "/linux", installs=False)
    catalog = make(tmp_path, renderer=Renderer([node], [profile]))
    name = "boot/pxelinux.cfg/01-52-54-00-00-00-01"
    source = catalog.resolve(name, CLIENT)
    assert "LINUX ::/linux" in text_of(source)
    found = catalog.stat(name, CLIENT)
    assert isinstance(found, Entry)
    assert found.size == len(text_of(source))
    assert catalog.list("pxelinux.cfg", CLIENT) == []
    assert text_of(catalog.resolve("/grub/grub.cfg", CLIENT)) == "own"
    assert reason_of(catalog.resolve("pxelinux.cfg/01-52-54-00-00-00-02", CLIENT)) is Reason.MISSING
    put(tmp_path / "pxelinux.cfg/01-52-54-00-00-00-01", "own")
    assert text_of(catalog.resolve(name, CLIENT)) == "own"


def test_check_names_what_is_missing(tmp_path: Path, make: Make) -> None:
    put(tmp_path / "file")
    renderer = Renderer((), [Profile("live", "linux", ("initrd",), media="m", installs=False)])
    catalog = make(tmp_path / "none", tmp_path / "file", media={"m": tmp_path}, renderer=renderer)
    assert [line.partition(";")[0] for line in catalog.check()] == [
        f"roots: {tmp_path}/none: {os.strerror(errno.ENOENT)}",
        f"roots: {tmp_path}/file is no directory",
        "profiles live: kernel: /media/m/linux: no such file",
        "profiles live: initrd: /media/m/initrd: no such file",
    ]


# Whatever is asked, and whatever links there are, nothing from outside is served


WORDS = st.sampled_from(
    ["..", ".", "", "d", "e", "f", "out", "abs", "up", "media", "m", "boot", "etc", "passwd", "\0"]
)
PATHS = st.lists(WORDS | st.text(max_size=3), max_size=9).flatmap(
    lambda words: st.sampled_from(["/", "\\", "//", "/./"]).map(lambda joint: joint.join(words))
)
HYPOTHESIS = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_confined(catalog: Catalog, path: str) -> None:
    """Every door answers with something from inside (whose text says so), or refuses."""
    found = catalog.resolve(path, CLIENT)
    if isinstance(found, Source):
        assert found.read() == b"inside"
    entry, entries = catalog.stat(path, CLIENT), catalog.list(path, CLIENT)
    if isinstance(found, Source):
        assert isinstance(entry, Entry)
        assert not entry.is_dir
    if isinstance(entries, list):
        assert isinstance(entry, Entry)
        assert entry.is_dir
        assert "secret" not in [listed.name for listed in entries]
        for listed in entries:
            below = catalog.stat(f"{path}/{listed.name}", CLIENT)
            assert isinstance(below, Entry)
            assert (below.is_dir, below.size) == (listed.is_dir, listed.size)


@pytest.fixture
def farm(tmp_path: Path, make: Make) -> Catalog:
    root = tmp_path / "root"
    put(root / "d/e/f")
    put(tmp_path / "secret", "outside")
    put(tmp_path / "out/secret", "outside")
    for name, target in {
        "out": "../out",
        "abs": str(tmp_path / "out"),
        "up": "..",
        "d/up": "../..",
        "d/e/d": "../../d",
    }.items():
        (root / name).symlink_to(target)
    return make(root, media={"m": root})


@given(path=PATHS)
@settings(HYPOTHESIS, max_examples=500)
def test_no_path_leaves(farm: Catalog, path: str) -> None:
    assert_confined(farm, path)


STEPS = st.sampled_from(["..", ".", "a", "b", "c", "dir", "file", "secret"])
TARGETS = st.lists(STEPS, min_size=1, max_size=5).map("/".join)
PREFIXES = st.sampled_from(["", "", "{root}/", "{other}/", "{top}/", "{top}/root/../", "/"])
PLACES = st.sampled_from(["root/a", "root/b", "root/dir/a", "root/dir/c", "other/a", "other/dir/b"])


@given(
    links=st.dictionaries(PLACES, st.tuples(PREFIXES, TARGETS)),
    paths=st.lists(TARGETS, min_size=1, max_size=6),
)
@settings(HYPOTHESIS, max_examples=300)
def test_no_farm_of_links_leads_out(
    tmp_path_factory: pytest.TempPathFactory, links: dict[str, tuple[str, str]], paths: list[str]
) -> None:
    top = tmp_path_factory.mktemp("farm")
    for tree in ("root", "other"):
        put(top / tree / "file")
        put(top / tree / "dir/file")
    for name in ("secret", "dir/secret", "file"):
        put(top / name, "outside")
    bases = {"top": top, "root": top / "root", "other": top / "other"}
    for name, (prefix, target) in links.items():
        (top / name).symlink_to(prefix.format(**bases) + target)
    config = Config(interface=("lo",), roots=(bases["root"],), allow_links=(bases["other"],))
    with contextlib.closing(Catalog(config)) as catalog:
        for path in paths:
            assert_confined(catalog, path)
            real = Path(os.path.realpath(bases["root"] / os.path.normpath(path)))
            if isinstance(catalog.resolve(path, CLIENT), Source):
                assert real.is_file()
                assert real.is_relative_to(bases["root"]) or real.is_relative_to(bases["other"])
    shutil.rmtree(top)


def test_a_link_swapped_during_opens_gains_nothing(tmp_path: Path, make: Make) -> None:
    root = tmp_path / "root"
    put(root / "good/file")
    put(tmp_path / "evil/file", "secret")
    turns = [
        lambda path: path.symlink_to("good"),
        lambda path: path.symlink_to("../evil"),
        lambda path: path.symlink_to(root / "good"),
        lambda path: path.symlink_to(tmp_path / "evil"),
    ]
    turns[0](root / "swap")
    catalog = make(root)
    stop = threading.Event()

    def swap() -> None:
        turn = 0
        while not stop.is_set():
            turns[turn % len(turns)](root / "next")
            (root / "next").rename(root / "swap")
            turn += 1

    thread = threading.Thread(target=swap)
    thread.start()
    seen: set[str] = set()
    try:
        for _ in range(4000):
            found = catalog.resolve("swap/file", CLIENT)
            seen.add(found.read().decode() if isinstance(found, Source) else found.reason)
            entries = catalog.list("swap", CLIENT)
            assert isinstance(entries, Refusal) or names_of(entries) == ["file"]
    finally:
        stop.set()
        thread.join()
    assert {"inside", Reason.OUTSIDE} <= seen
    assert "secret" not in seen
