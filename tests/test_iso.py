"""Images of discs: what mastering programs wrote is found as other readers find it; what is broken is named."""

from __future__ import annotations

import os
import random
import re
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from isokit import (
    GENISOIMAGE,
    LONG,
    SECTOR,
    TELLING,
    XORRISO,
    bare_udf,
    files_below,
    image_of,
    mend,
    names_of,
    opened,
    put,
    read_all,
    run,
    small_images,
    survives,
    tag_again,
    telling_places,
)
from pycdlib import PyCdlib

from fastboot.boot.image import Image, ImageError, Item, Kind, Queue, Step
from fastboot.boot.index import read_volume
from fastboot.boot.iso import iso_volumes

FILES: dict[str, bytes | str] = {
    ".treeinfo": b"[general]\n",
    "empty": b"",
    "one": b"1",
    "sector": bytes(range(256)) * 8,
    "more": os.urandom(5000),
    "piece1": os.urandom(5001),
    "piece2": b"2",
    "BaseOS/Packages/g/gtk+-1.2.3-4.el9.x86_64.rpm": os.urandom(300),
    "BaseOS/Packages/g/with space and 'quote'": b"quoted",
    "BaseOS/Packages/umlaut-\u00e4-\u4f60": b"unicode",
    f"BaseOS/{LONG}": b"long",
    "a/b/c/d/e/f/g/h/i/j/deep": b"deep",
    "link": "more",
    "up": "../images/kernel",
    "a/b/link": "../../one",
    "a/dir": "b",
    "far": "/".join([LONG] * 4),
    "absolute": "/etc/passwd",
    "outside": "../../../etc/passwd",
    "loop": "loop2",
    "loop2": "loop",
    "dangling": "nowhere",
}
PLAIN = {name: content for name, content in FILES.items() if isinstance(content, bytes)}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = put(tmp_path_factory.mktemp("tree"), FILES)
    (root / "nothing").mkdir()
    os.link(root / "more", root / "hard")
    os.utime(root / "one", (1_000_000_001, 1_000_000_001))
    return root


@pytest.fixture(scope="module")
def make(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that makes an image of the tree with a program and its options, each once."""
    made: dict[tuple[str, ...], Path] = {}

    def build(*command: str) -> Path:
        if command not in made:
            made[command] = tmp_path_factory.mktemp("iso") / "x.iso"
            run(*command, "-o", made[command], tree)
        return made[command]

    return build


def form_of(path: Path) -> str:
    with opened(path) as image:
        return read_volume(image).form


def test_rock_ridge_is_read_as_xorriso_reads_it(make: Callable[..., Path], tree: Path, tmp_path: Path) -> None:
    path = make(*XORRISO, "-R", "-J", "-joliet-long")
    run("xorriso", "-osirrox", "on", "-indev", path, "-extract", "/", tmp_path / "out")
    assert form_of(path) == "Rock Ridge"
    assert read_all(path) == files_below(tmp_path / "out") == files_below(tree)
    with opened(path) as image:
        volume = read_volume(image)
        found = names_of(volume)
        assert volume.label == "Lab-9-4-x86_64-dvd"
    assert {name: os.fsdecode(item.text) for name, item in found.items() if item.kind is Kind.LINK} == {
        name: content for name, content in FILES.items() if isinstance(content, str)
    }
    assert found["nothing"].kind is Kind.DIRECTORY
    assert found["one"].mtime == 1_000_000_001
    assert found["hard"].offset == found["more"].offset
    assert found["empty"].size == 0


def test_directories_that_were_moved_for_their_depth(make: Callable[..., Path], tree: Path) -> None:
    path = make(*GENISOIMAGE, "-R")
    assert read_all(path) == files_below(tree)
    with opened(path) as image:
        found = names_of(read_volume(image))
        # What moved is in its own place. Where it was moved to is a directory with nothing in it, as in Linux.
        assert {name for name in found if name.startswith("rr_moved")} == {"rr_moved"}
        assert found["far"].kind is Kind.REFUSED  # genisoimage spoils links that are longer than 230 octets


def test_joliet(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make(*GENISOIMAGE, "-J", "-joliet-long")
    assert form_of(path) == "Joliet"
    run("7z", "x", "-y", f"-o{tmp_path / 'out'}", path)
    found = read_all(path)
    assert found == files_below(tmp_path / "out")
    assert (
        found["BaseOS/Packages/g/gtk+-1.2.3-4.el9.x86_64.rpm"]
        == FILES["BaseOS/Packages/g/gtk+-1.2.3-4.el9.x86_64.rpm"]
    )
    assert found["BaseOS/Packages/umlaut-\u00e4-\u4f60"] == b"unicode"


def test_plain_names_are_those_that_linux_shows(make: Callable[..., Path]) -> None:
    path = make(*GENISOIMAGE, "-iso-level", "1")
    found = read_all(path)
    listed = {line.strip().removesuffix(";1") for line in run("isoinfo", "-f", "-i", path).splitlines()}
    with opened(path) as image:
        assert {f"/{name}" for name in names_of(read_volume(image))} == {
            name.lower().removesuffix(".") for name in listed
        }
    assert found["one"] == b"1"
    assert found["sector"] == FILES["sector"]


@pytest.mark.parametrize("is_bare", [False, True], ids=["bridge", "alone"])
def test_udf(make: Callable[..., Path], tmp_path: Path, is_bare: bool) -> None:
    path = make(*GENISOIMAGE, "-udf")
    path = bare_udf(path) if is_bare else path
    assert form_of(path) == "UDF"
    run("7z", "x", "-y", *(() if is_bare else ("-tudf",)), f"-o{tmp_path / 'out'}", path)
    found = read_all(path)
    assert found == files_below(tmp_path / "out")
    assert found["BaseOS/Packages/umlaut-\u00e4-\u4f60"] == b"unicode"
    assert found["more"] == FILES["more"]
    with opened(path) as image:
        volume = read_volume(image)
        assert volume.label == "LAB-9"
        assert names_of(volume)["one"].mtime == 1_000_000_001


def test_udf_with_rock_ridge_beside_it(make: Callable[..., Path]) -> None:
    """Rock Ridge has the links, so it is taken where both are."""
    assert form_of(make(*GENISOIMAGE, "-udf", "-R", "-J")) == "Rock Ridge"


@pytest.mark.parametrize(
    "command",
    [
        (*XORRISO, "-R", "-J", "-joliet-long"),
        (*GENISOIMAGE, "-R", "-m", "far"),
        (*GENISOIMAGE, "-J", "-joliet-long"),
    ],
    ids=["xorriso", "genisoimage", "joliet"],
)
def test_extents_are_those_of_pycdlib(make: Callable[..., Path], command: tuple[str, ...]) -> None:
    path = make(*command)
    other = PyCdlib()
    other.open(path)
    try:
        with opened(path) as image:
            volume = read_volume(image)
            key = "joliet_path" if volume.form == "Joliet" else "rr_path"
            for name, item in names_of(volume).items():
                if item.kind is Kind.FILE and item.size:
                    record = other.get_record(**{key: f"/{name}"})
                    assert (record.extent_location() * SECTOR, record.get_data_length()) == (
                        item.offset,
                        item.size,
                    )
    finally:
        other.close()


# Images that are changed by hand


class Edited:
    """An image whose directory records are found by name and changed."""

    def __init__(self, path: Path) -> None:
        self.data = bytearray(path.read_bytes())
        with image_of(bytes(self.data)) as image:
            self.volume = next(iter(iso_volumes(image)))
            self.top = self.volume._top

    def record(self, name: bytes, after: int = 0) -> int:
        """Return the offset of the record whose Rock Ridge name this is."""
        field = b"NM" + bytes([5 + len(name), 1, 0]) + name
        at = self.data.index(field, max(self.top, after))
        sector = at - at % SECTOR
        start = sector
        while start + self.data[start] <= at:
            start += self.data[start]
        return start

    def found(self) -> dict[str, Item]:
        with image_of(bytes(self.data)) as image:
            return names_of(read_volume(image))

    def fault(self) -> str:
        with pytest.raises(ImageError) as caught:
            self.found()
        assert TELLING.match(str(caught.value)), caught.value
        return str(caught.value)


@pytest.fixture
def edited(make: Callable[..., Path]) -> Edited:
    return Edited(make(*XORRISO, "-R"))


def test_a_file_in_pieces_is_refused_by_name(edited: Edited) -> None:
    """Two sections of one file (ECMA-119 section 6.5.1), apart, and then beside each other."""
    first, second = edited.record(b"piece1"), edited.record(b"piece2")
    length = edited.data[first + 32]
    edited.data[first + 25] |= 0x80
    edited.data[second + 32 : second + 33 + length] = edited.data[first + 32 : first + 33 + length]
    struct.pack_into("<I", edited.data, first + 10, SECTOR)
    extent = struct.unpack_from("<I", edited.data, first + 2)[0]
    struct.pack_into("<I", edited.data, second + 2, extent + 7)
    assert edited.found()["piece1"].text == b"is stored in pieces"
    struct.pack_into("<I", edited.data, second + 2, extent + 1)
    item = edited.found()["piece1"]
    assert (item.kind, item.offset, item.size) == (Kind.FILE, extent * SECTOR, SECTOR + 1)


def test_a_file_whose_last_section_is_missing(edited: Edited) -> None:
    edited.data[edited.record(b"more") + 25] |= 0x80
    assert "the last section of the file is missing" in edited.fault()


def test_an_interleaved_file_is_refused_by_name(edited: Edited) -> None:
    edited.data[edited.record(b"more") + 26] = 1
    assert edited.found()["more"].text == b"is stored interleaved"


def test_a_compressed_file_is_refused_by_name(tree: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    put(packed, {"file": b"x" * 100_000, "other": b"y"})
    run("xorriso", "-outdev", tmp_path / "z.iso", "-zisofs", "level=9", "-map", packed, "/",
        "-set_filter_r", "--zisofs", "/file", "--", "-commit")  # fmt: skip
    with opened(tmp_path / "z.iso") as image:
        found = names_of(read_volume(image))
    assert found["file"].text == b"is compressed by zisofs"
    assert found["other"].kind is Kind.FILE


def test_a_directory_that_is_its_own_parent_ends_the_walk_there(edited: Edited) -> None:
    at = edited.record(b"nothing")
    struct.pack_into("<I", edited.data, at + 2, edited.top // SECTOR)
    found = edited.found()
    assert found["nothing"].kind is Kind.REFUSED
    assert b"its extent is another directory's" in found["nothing"].text
    assert "nothing/one" not in found


def test_a_directory_without_an_extent_is_refused_by_name(edited: Edited) -> None:
    struct.pack_into("<I", edited.data, edited.record(b"nothing") + 10, 0)
    assert edited.found()["nothing"].text == b"is a directory without an extent"


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("<I", (10, 1 << 31), "file /more at 0x[0-9a-f]+: ends at 0x"),
        ("<I", (2, 0xFFFFFFF0), "file /more at 0x[0-9a-f]+: ends at 0x"),
        ("<B", (32, 250), "directory record at 0x[0-9a-f]+: a name of 250 octets in a record of"),
        ("<B", (0, 20), "directory record at 0x[0-9a-f]+: a length of 20 octets"),
    ],
)
def test_a_broken_record_is_named_with_its_place(
    edited: Edited, field: str, value: tuple[int, int], fault: str
) -> None:
    struct.pack_into(field, edited.data, edited.record(b"more") + value[0], value[1])
    assert re.search(fault, edited.fault())


@pytest.mark.parametrize(
    ("length", "fault"),
    [(3, b"system use field at 0x.*a length of 3"), (5, b"Rock Ridge field PX at 0x.*too short, with 5")],
)
def test_broken_fields_of_rock_ridge_cost_one_name(edited: Edited, length: int, fault: bytes) -> None:
    edited.data[edited.data.index(b"PX", edited.record(b"more")) + 2] = length
    found = edited.found()
    assert found["more"].kind is Kind.REFUSED
    assert re.match(fault, found["more"].text)
    assert found["one"].kind is Kind.FILE


def test_continuation_areas_that_go_round(edited: Edited) -> None:
    """The field CE of a long name, led back to the area that it leads to (SUSP 1.12 section 5.1)."""
    first = edited.data.index(b"CE\x1c\x01", edited.top)  # that of the directory itself
    at = edited.data.index(b"CE\x1c\x01", first + 28)
    block, offset, size = struct.unpack_from("<I4xI4xI4x", edited.data, at + 4)
    area = block * SECTOR + offset
    edited.data[area : area + size] = edited.data[at : at + 28].ljust(size, b"\0")
    assert any(b"more than 32 for one record; a loop?" in item.text for item in edited.found().values())


def test_descriptors(edited: Edited) -> None:
    intact = bytes(edited.data)
    struct.pack_into("<H", edited.data, 0x8000 + 128, 1000)
    assert edited.fault() == "volume descriptor at 0x8000: blocks of 1000 octets, not 512, 1024 or 2048"
    edited.data[:] = intact
    edited.data[0x8000 + 156 + 25] = 0
    assert edited.fault() == "root directory record at 0x809c: is no directory"
    edited.data[:] = intact
    struct.pack_into("<I", edited.data, 0x8000 + 156 + 10, 1 << 30)
    assert "a directory of 1073741824 octets" in edited.fault()
    edited.data[:] = bytes(len(intact))
    assert edited.fault().startswith("volume descriptor at 0x8000: neither ISO 9660 nor UDF")
    edited.data[0x8000:0x8800] = intact[0x8000:0x8800]
    edited.data[0x8001] = 0
    assert edited.fault().startswith("volume descriptor at 0x8000: neither ISO 9660 nor UDF")
    edited.data[:] = b"\1CD001\1".ljust(SECTOR, b"\0") * 100
    edited.data[0x8000] = 3
    edited.data[0x8800::SECTOR] = bytes([3]) * len(edited.data[0x8800::SECTOR])
    assert edited.fault() == "volume descriptor at 0x8000: more than 64 of them"


def test_an_image_that_was_cut_short_says_so(make: Callable[..., Path]) -> None:
    path = make(*XORRISO, "-R")
    with opened(path) as image:
        end = max(item.offset + item.size for item in names_of(read_volume(image)).values())
    with image_of(path.read_bytes()[: end - 1]) as image, pytest.raises(ImageError, match="is it whole"):
        names_of(read_volume(image))


def test_udf_partitions_that_are_not_read_are_named(make: Callable[..., Path]) -> None:
    data = bytearray(bare_udf(make(*GENISOIMAGE, "-udf")).read_bytes())
    at = next(at for at in range(0, len(data), SECTOR) if data[at : at + 2] == b"\6\0")
    data[at + 440] = 2
    tag_again(data, at)
    with image_of(bytes(data)) as image, pytest.raises(ImageError, match=r"a partition of type 2.*not read here"):
        read_volume(image)


def test_a_wrong_checksum_in_udf_is_named(make: Callable[..., Path]) -> None:
    data = bytearray(bare_udf(make(*GENISOIMAGE, "-udf")).read_bytes())
    at = next(at for at in range(0, len(data), SECTOR) if data[at : at + 2] == b"\5\1")
    data[at + 56] ^= 1
    with image_of(bytes(data)) as image, pytest.raises(ImageError, match=f"file entry at {at:#x}: its checksum"):
        names_of(read_volume(image))


def udf_item(data: bytearray, name: str) -> Item:
    with image_of(bytes(data)) as image:
        return names_of(read_volume(image))[name]


def test_udf_holes_and_pieces_are_refused_by_name(make: Callable[..., Path]) -> None:
    data = bytearray(bare_udf(make(*GENISOIMAGE, "-udf")).read_bytes())
    size = struct.pack("<Q", 5001)
    at = next(
        at
        for at in range(0, len(data), SECTOR)
        if data[at : at + 2] == b"\5\1" and data[at + 56 : at + 64] == size
    )
    start = at + 176 + struct.unpack_from("<I", data, at + 168)[0]
    word, block = struct.unpack_from("<II", data, start)
    struct.pack_into("<I", data, start, word | 1 << 30)
    tag_again(data, at)
    assert udf_item(data, "piece1").text == b"is stored with holes in it"
    struct.pack_into("<IIII", data, start, SECTOR, block, 5001 - SECTOR, block + 9)
    struct.pack_into("<I", data, at + 172, 16)
    struct.pack_into("<H", data, at + 10, 0)
    tag_again(data, at)
    assert udf_item(data, "piece1").text == b"is stored in pieces"
    struct.pack_into("<I", data, start + 12, block + 1)
    tag_again(data, at)
    assert udf_item(data, "piece1").kind is Kind.FILE


# Whatever comes


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return small_images(tmp_path_factory.mktemp("seeds"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_change_of_an_image_is_survived(seeds: list[bytes], choice: st.DataObject) -> None:
    data = bytearray(choice.draw(st.sampled_from(seeds)))
    places = telling_places(data)
    for _ in range(choice.draw(st.integers(1, 6))):
        at = places[choice.draw(st.integers(0, len(places) - 1))]
        new = choice.draw(
            st.sampled_from([b"\0", b"\xff", b"\x7f", b"\x80", b"\1"]) | st.binary(min_size=1, max_size=8)
        )
        data[at : at + len(new)] = new
    survives(bytes(data))


def test_random_changes_of_records_are_survived(seeds: list[bytes]) -> None:
    """As above, the sums of UDF mended afterwards, so that its descriptors are looked into."""
    dice = random.Random(9660)
    for seed in seeds:
        places = telling_places(seed)
        for _ in range(400):
            data = bytearray(seed)
            for _ in range(dice.randint(1, 4)):
                data[dice.choice(places)] = dice.choice(
                    (0, 1, 2, 4, 8, 33, 34, 127, 128, 254, 255, dice.randrange(256))
                )
            mend(data)
            survives(bytes(data))


def test_every_place_to_cut_an_image_is_survived(seeds: list[bytes]) -> None:
    for seed in seeds:
        for size in {*range(0, len(seed), 1021), *range(16 * SECTOR, len(seed), SECTOR)}:
            survives(seed[:size])


def test_a_directory_of_zeros_ends_soon(edited: Edited, tmp_path: Path) -> None:
    """A directory said to be as large as allowed, in a sparse file: read in no time, and never held in memory."""
    struct.pack_into("<I", edited.data, edited.record(b"nothing") + 2, len(edited.data) // SECTOR + 1)
    struct.pack_into("<I", edited.data, edited.record(b"nothing") + 10, 200 << 20)
    path = tmp_path / "sparse.iso"
    path.write_bytes(edited.data)
    os.truncate(path, 1 << 30)
    began = time.monotonic()
    with opened(path) as image:
        assert names_of(read_volume(image))["nothing"].kind is Kind.DIRECTORY
    assert time.monotonic() - began < 5


def test_limits(edited: Edited, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastboot.boot.image.MAX_ENTRIES", 5)
    assert "more than 5 names in one image" in edited.fault()
    monkeypatch.setattr("fastboot.boot.image.MAX_ENTRIES", 5000)
    monkeypatch.setattr("fastboot.boot.image.MAX_DEPTH", 3)
    assert "directories more than 3 deep" in edited.fault()


def test_steps_tell_how_far_a_walk_is(make: Callable[..., Path]) -> None:
    with opened(make(*XORRISO, "-R")) as image:
        steps = [item for item in read_volume(image).walk() if isinstance(item, Step)]
    assert [step.read for step in steps] == list(range(1, len(steps) + 1))
    assert steps[-1].read == steps[-1].known
    assert steps[-1].names == len(FILES) + 15  # with 14 directories and the hard link


def test_reading_never_leaves_the_file() -> None:
    with image_of(b"x" * 100) as image:
        assert isinstance(image, Image)
        assert image.read(90, 10, "end") == b"x" * 10
        with pytest.raises(ImageError, match="end at 0x5b: ends at 0x65, the file at 0x64"):
            image.read(91, 10, "end")


# Images that would take for ever


def record_of(name: bytes, sector: int, size: int, flags: int = 2, system: bytes = b"") -> bytes:
    """Return a directory record (ECMA-119 section 9.1)."""
    head = struct.pack("<II", sector, sector)[:4] + struct.pack(">I", sector) + struct.pack("<I", size)
    body = (
        head + struct.pack(">I", size) + bytes(7) + bytes((flags, 0, 0)) + b"\1\0\0\1" + bytes((len(name),)) + name
    )
    body += b"\0" * (len(name) % 2 == 0) + system
    return bytes((len(body) + 2, 0)) + body


def image_with(path: Path, top: bytes, size: int) -> Path:
    """Make a sparse image of `size` octets whose top directory, from sector 20, is given."""
    descriptor = bytearray(SECTOR)
    descriptor[:7] = b"\1CD001\1"
    struct.pack_into("<H", descriptor, 128, SECTOR)
    descriptor[156:190] = record_of(b"\0", 20, len(top))
    with path.open("wb") as file:
        file.seek(16 * SECTOR)
        file.write(descriptor + b"\xffCD001\1".ljust(SECTOR, b"\0"))
        file.seek(20 * SECTOR)
        file.write(top)
        file.truncate(size)
    return path


def sectors_of(records: Iterator[bytes] | list[bytes]) -> bytes:
    """Return a directory: no record goes beyond the sector that it begins in."""
    data = bytearray()
    for record in records:
        if len(data) % SECTOR + len(record) > SECTOR:
            data.extend(bytes(-len(data) % SECTOR))
        data += record
    return bytes(data) + bytes(-len(data) % SECTOR)


def fault_of(path: Path) -> str:
    began = time.thread_time()
    with opened(path) as image, pytest.raises(ImageError) as caught:
        names_of(read_volume(image))
    assert time.thread_time() - began < 20
    assert TELLING.match(str(caught.value)), caught.value
    return str(caught.value)


def test_directories_that_overlap_are_not_read_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 1,000 begins a sector after the one before, and goes on for 200 MB: 200 GB to read in all."""
    monkeypatch.setattr("fastboot.boot.image.MAX_READ", 256 << 20)
    dots = [record_of(b"\0", 20, 0), record_of(b"\1", 20, 0)]
    top = sectors_of([*dots, *(record_of(b"D%03d" % at, 1000 + at, 200 << 20) for at in range(1000))])
    fault = fault_of(image_with(tmp_path / "x.iso", top, 300 << 20))
    assert "more than 256 MiB of structures in one image; a loop?" in fault


def test_a_deep_directory_of_long_names_takes_no_memory(tmp_path: Path) -> None:
    """A million names, each with a path of 50,000 octets."""
    name = b"x" * 200
    tracemalloc.start()
    queue = Queue(0, 1)
    place = next(iter(queue))
    for at in range(1, 250):
        assert queue.add(place, name, at * SECTOR, 1, "directory record", at)
        place = queue._places[-1]
    for at in range(250, 50_000):
        queue.add(place, name, at * SECTOR, 1, "directory record", at)
    assert tracemalloc.get_traced_memory()[0] < 30_000_000
    tracemalloc.stop()
    assert place.path_of(b"end") == "/" + "/".join(["x" * 200] * 249) + "/end"


def test_continuation_areas_that_many_records_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 20,000 names goes on in the same 2 KiB, as often as a record may: 1.2 GB to read."""
    monkeypatch.setattr("fastboot.boot.image.MAX_READ", 64 << 20)
    dots = [record_of(b"\0", 20, 0, system=b"SP\7\1\xbe\xef\0" + b"PX$\1" + bytes(32)), record_of(b"\1", 20, 0)]
    more = b"CE\x1c\1" + struct.pack("<I4xI4xI4x", 19, 0, SECTOR)
    top = sectors_of([*dots, *(record_of(b"F%05d" % at, 0, 0, flags=0, system=more) for at in range(20_000))])
    path = image_with(tmp_path / "x.iso", top, 4 << 20)
    with path.open("r+b") as file:
        file.seek(19 * SECTOR)
        file.write(b"NM\x65\1\1" + b"y" * 96 + more)
    began = time.thread_time()
    assert "structures in one image" in fault_of(path)
    assert time.thread_time() - began < 20


def test_extents_of_udf_are_counted(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastboot.boot.udf.MAX_ALL_EXTENTS", 10)
    error = pytest.raises(ImageError, match=r"file entry at 0x\w+: more than 10 extents in one image")
    with opened(bare_udf(make(*GENISOIMAGE, "-udf"))) as image, error:
        names_of(read_volume(image))
