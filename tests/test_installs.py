"""Installs: each arming is used up once, and what was told is on disk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastboot.model import Event, FastbootError, Install, InstallState
from fastboot.state.install_rows import StoredInstall, parse, texts
from fastboot.state.nodes import Installs
from fastboot.state.store import Store

ARMED, INSTALLING, INSTALLED, FAILED = InstallState
TOKEN = "0123456789abcdef" * 2


@asynccontextmanager
async def opened(state: Path, events: list[Event] | None = None) -> AsyncIterator[Installs]:
    """The installs of a state directory, as a server has them from its start to its end."""
    with closing(Store(state)) as store:
        store.start()
        installs = Installs((events if events is not None else []).append)
        installs.load(store)
        yield installs
        await installs.settle()


class Stuck:
    """Holds the committer up, so that what comes meanwhile is seen."""

    def __init__(self, store: Store) -> None:
        self.real, self.calls = store.keep_installs, 0
        self.held: list[tuple[object, ...]] = []
        store.keep_installs = self._hold  # type: ignore[method-assign]

    def _hold(self, *call: object) -> None:
        self.calls += 1
        self.held.append(call)

    def let_go(self) -> None:
        held, self.held = self.held, []
        for call in held:
            self.real(*call)  # type: ignore[arg-type]

    def fail(self) -> None:
        held, self.held = self.held, []
        for _, _, done in held:
            done(OSError("the disk is gone"))  # type: ignore[operator]


# ---- life of an arming


async def test_an_arming_is_used_up_once_and_ends(tmp_path: Path) -> None:
    events: list[Event] = []
    async with opened(tmp_path, events) as installs:
        (armed,) = await installs.arm({"node01": "rocky"})
        assert (armed.node, armed.profile, armed.state) == ("node01", "rocky", ARMED)
        assert installs.of("node01") == installs.by_token(armed.token) == armed
        begun = await installs.begin(armed)
        assert begun.state is INSTALLING
        assert await installs.begin(armed) == begun, "asked again it is the same"
        done = await installs.end(begun)
        assert done.state is INSTALLED
        assert await installs.end(begun, "late") == done, "the first verdict stays"
        with pytest.raises(FastbootError, match="has ended: it is installed"):
            await installs.begin(armed)
    assert [(event.kind, event.node, event.details) for event in events] == [
        (f"node.{kind}", "node01", {"profile": "rocky"}) for kind in ("armed", "installing", "installed")
    ]
    async with opened(tmp_path) as installs:
        assert installs.of("node01") == done


async def test_a_failure_is_kept_with_its_text(tmp_path: Path) -> None:
    async with opened(tmp_path) as installs:
        (armed,) = await installs.arm({"node01": "rocky"})
        failed = await installs.end(armed, "no disk:\x1b[2J\n two  blanks \u20ac " + "x" * 2000)
        assert failed.state is FAILED
        assert failed.text.startswith("no disk:?[2J? two  blanks \u20ac xxx")
        assert len(failed.text) == 1024
    async with opened(tmp_path) as installs:
        assert installs.of("node01") == failed


async def test_a_late_word_on_an_older_arming_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path) as installs:
        (old,) = await installs.arm({"node01": "rocky"})
        await installs.end(old, "broken")
        (new,) = await installs.arm({"node01": "rocky"})
        assert new.token != old.token
        assert installs.by_token(old.token) is None
        assert await installs.end(old) == new
        with pytest.raises(FastbootError, match="does not count any more"):
            await installs.begin(old)
        assert installs.of("node01") == new


async def test_who_is_being_installed_is_armed_only_after_disarm_and_then_all_are(tmp_path: Path) -> None:
    async with opened(tmp_path) as installs:
        (one,) = await installs.arm({"node01": "rocky"})
        await installs.begin(one)
        with pytest.raises(FastbootError, match=r"node01 is being installed since \d{4}-.*fastboot disarm node01"):
            await installs.arm({"node02": "rocky", "node01": "rocky"})
        assert installs.of("node02") is None, "one error, nothing armed"
        assert [install.node for install in await installs.disarm(["node01", "node02"])] == ["node01"]
        assert installs.of("node01") is None
        assert installs.knows("node01")
        assert len(await installs.arm({"node02": "rocky", "node01": "rocky"})) == 2
        assert installs.counts(["node01", "node03"]) == {"armed": 1, "installing": 0, "installed": 0, "failed": 0}
    async with opened(tmp_path) as installs:
        assert installs.counts(["node01", "node02"])["armed"] == 2


async def test_disarmed_stays_disarmed_after_a_restart(tmp_path: Path) -> None:
    async with opened(tmp_path) as installs:
        await installs.arm({"node01": "rocky"})
        await installs.disarm(["node01"])
    async with opened(tmp_path) as installs:
        assert installs.of("node01") is None
        assert installs.knows("node01")


# ---- the disk


async def test_nothing_counts_before_it_is_on_disk(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.start()
        stuck, events = Stuck(store), list[Event]()
        changes: list[int] = []
        installs = Installs(events.append, lambda: changes.append(len(events)))
        installs.load(store)
        arming = asyncio.create_task(installs.arm({"node01": "rocky", "node02": "rocky"}))
        await asyncio.sleep(0.05)
        assert (stuck.calls, installs.of("node01"), events, arming.done()) == (1, None, [], False)
        stuck.let_go()
        one, two = await arming
        assert changes == [0], "what is kept of plans is forgotten before anybody is told"
        beginning = [asyncio.create_task(installs.begin(each)) for each in (one, one, two)]
        await asyncio.sleep(0.05)
        assert stuck.calls == 2, "all of one moment are one commit"
        assert installs.of("node01") == one
        late = asyncio.create_task(installs.begin(one))
        ending = asyncio.create_task(installs.end(two))
        disarming = asyncio.create_task(installs.disarm(["node01"]))
        await asyncio.sleep(0.05)
        assert stuck.calls == 2
        stuck.let_go()
        assert {each.state for each in await asyncio.gather(*beginning, late)} == {INSTALLING}
        await asyncio.sleep(0.05)
        stuck.let_go()
        assert (await ending).state is INSTALLED
        assert [each.state for each in await disarming] == [INSTALLING]
        assert stuck.calls == 3, "what comes during a commit is the next one"


async def test_a_commit_that_fails_changes_nothing_and_the_disk_is_put_right_by_the_next(tmp_path: Path) -> None:
    with closing(Store(tmp_path)) as store:
        store.start()
        installs = Installs()
        installs.load(store)
        (one,) = await installs.arm({"node01": "rocky"})
        stuck = Stuck(store)
        beginning = [asyncio.create_task(installs.begin(one)) for _ in range(2)]
        refused = asyncio.create_task(installs.arm({"node02": "rocky"}))
        await asyncio.sleep(0.05)
        # What failed may be on the disk all the same.
        stuck.real(9, [StoredInstall(9, "node02", Install("node02", "rocky", ARMED, TOKEN, 1.0))], print)
        stuck.fail()
        for task in (*beginning, refused):
            with pytest.raises(FastbootError, match="can not be written: the disk is gone"):
                await task
        assert installs.of("node01") == one
        assert installs.of("node02") is None
        third = asyncio.create_task(installs.arm({"node03": "rocky"}))
        await asyncio.sleep(0.05)
        stuck.let_go()
        await third
        assert {row.node: row.install and row.install.state for row in store.installs()} == {
            "node01": ARMED,
            "node02": None,
            "node03": ARMED,
        }


@pytest.mark.parametrize("how", ["end", "disarm"])
async def test_an_interruption_undoes_nothing_that_came_before_it_was_kept(tmp_path: Path, how: str) -> None:
    with closing(Store(tmp_path)) as store:
        store.start()
        installs = Installs()
        installs.load(store)
        (one,) = await installs.arm({"node01": "rocky"})
        begun = await installs.begin(one)
        dones = []
        store.keep_installs = lambda serial, rows, done: dones.append(done)  # type: ignore[method-assign]
        change = asyncio.create_task(installs.end(begun) if how == "end" else installs.disarm(["node01"]))
        await asyncio.sleep(0.01)
        installs.interrupted(begun)
        dones.pop()(None)
        await change
        await asyncio.sleep(0.01)
        now = installs.of("node01")
        assert (now and now.state) == (INSTALLED if how == "end" else None)
        assert not dones, "nothing more is written"


async def test_a_waiter_that_leaves_stops_no_commit(tmp_path: Path) -> None:
    async with opened(tmp_path) as installs:
        (one,) = await installs.arm({"node01": "rocky"})
        beginning = asyncio.create_task(installs.begin(one))
        await asyncio.sleep(0)
        beginning.cancel()
        assert (await installs.begin(one)).state is INSTALLING


# ---- secrets


async def test_a_token_is_in_no_event_and_no_text(tmp_path: Path) -> None:
    events: list[Event] = []
    async with opened(tmp_path, events) as installs:
        (armed,) = await installs.arm({"node01": "rocky"})
        await installs.end(await installs.begin(armed), "broken")
        assert len(armed.token) == 32
        assert armed.token not in repr(armed) + repr(events)
        assert len({(await installs.arm({"node01": "rocky"}))[0].token for _ in range(10)}) == 10


# ---- rows

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)
said = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), max_size=50)
times = st.integers(0, 2**40).map(float)
stored = st.builds(
    StoredInstall,
    st.integers(0, 2**40),
    names,
    st.none()
    | st.builds(
        Install,
        names,
        names,
        st.sampled_from(InstallState),
        st.just(TOKEN),
        st.integers(0, 2**40).map(float),
        said,
    ),
).map(lambda row: row._replace(node=row.install.node) if row.install else row)


@given(stored)
def test_a_row_is_what_was_written(row: StoredInstall) -> None:
    assert parse(row.text().encode()) == row
    assert json.loads(texts([row])) == {str(row.key): row.text()}
    assert 0 <= row.key < 2**63


@given(stored, st.data())
def test_one_wrong_bit_anywhere_in_a_row_is_noticed(row: StoredInstall, data: st.DataObject) -> None:
    octets = bytearray(row.text().encode())
    bit = data.draw(st.integers(0, len(octets) * 8 - 1))
    octets[bit // 8] ^= 1 << bit % 8
    with pytest.raises(ValueError, match="check"):
        parse(bytes(octets))
