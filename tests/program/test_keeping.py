"""`relay backup`, `relay prune` and a disk that runs full: the real command against the real gateway."""

import asyncio
import fcntl
import http.server
import itertools
import json
import shutil
import signal
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from test_cli import command, environment, run_relay

from relay.store.sqlite.copying import verify_copy
from tests.support.program import Gateway, Sink, until, webhook, write_config
from tests.support.small_disk import can_mount, small_disk


async def relay(gateway: Gateway, *arguments: str, given: bytes = b"") -> Any:
    """Run a verb beside a running relay."""
    verb, *rest = arguments
    where = ("--admin", gateway.admin)
    return await asyncio.to_thread(run_relay, verb, *where, *rest, cwd=gateway.config.parent, given=given)


async def steered(gateway: Gateway, verb: str) -> None:
    done = await relay(gateway, "targets", verb, "crm")
    assert done.returncode == 0, done.stderr


async def posted(gateway: Gateway, *numbers: int) -> list[str]:
    """The ids of webhooks that were taken."""
    ids = []
    for number in numbers:
        status, answer = await gateway.post(*webhook(number))
        assert status == 200
        ids.append(answer["id"])
    return ids


def rows(file: Path, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as db:
        return db.execute(query).fetchall()


DELIVERIES = """SELECT e.id, e.body, d.target, d.state, d.attempts, d.outcome FROM event e
    JOIN delivery d ON d.event_seq = e.seq ORDER BY e.seq, d.target"""
ATTEMPTS = "SELECT event_seq, target, number, began_at, outcome, status FROM attempt ORDER BY seq"
HEALTH = "SELECT name, state, disabled_by, reason, since, failures FROM target ORDER BY name"


@pytest.mark.slow
@pytest.mark.row("F8")
async def test_a_relay_goes_on_from_its_backup(tmp_path: Path) -> None:
    """Backed up while it runs; its store is moved away, the copy put in its place, and it is as it was then."""
    async with Sink() as sink, Gateway(write_config(tmp_path / "config.yaml", sink)) as gateway:
        delivered = await posted(gateway, 1, 2)
        await until(lambda: len(sink.arrivals) == 2)
        await steered(gateway, "disable")
        held = await posted(gateway, 3, 4, 5)
        done = await relay(gateway, "backup", str(tmp_path / "copy.db"))
        assert (done.returncode, done.stderr) == (0, "")
        assert "whole" in done.stdout
        copy, store = tmp_path / "copy.db", tmp_path / "relay.db"
        assert copy.stat().st_mode & 0o777 == 0o600
        assert not copy.with_name("copy.db.part").exists()
        for query in (DELIVERIES, ATTEMPTS, HEALTH):
            assert rows(copy, query) == rows(store, query) != []
        await posted(gateway, 6)
        gateway.signal(signal.SIGTERM)
        assert await gateway.ended() == 0
        (tmp_path / "old").mkdir()
        for file in tmp_path.glob("relay.db*"):
            file.rename(tmp_path / "old" / file.name)
        shutil.copy(copy, store)
        await gateway.start()
        assert {row[0] for row in rows(store, DELIVERIES)} == {*delivered, *held}
        assert (await gateway.targets())["crm"]["held"] == 3
        await steered(gateway, "enable")
        await until(lambda: len(sink.arrivals) == 5)
        assert sink.ids("crm") == [*delivered, *held]


@pytest.mark.slow
async def test_a_backup_replaces_nothing_unasked_and_goes_to_stdout_too(tmp_path: Path) -> None:
    """An existing file is refused with exit code 1 and is as it was; --force replaces it."""
    async with Sink() as sink, Gateway(write_config(tmp_path / "config.yaml", sink)) as gateway:
        await posted(gateway, 1)
        mine = tmp_path / "mine"
        mine.write_text("precious")
        refused = await relay(gateway, "backup", str(mine))
        assert (refused.returncode, refused.stdout) == (1, "")
        assert f"relay: {mine} exists" in refused.stderr
        assert "--force" in refused.stderr
        assert mine.read_text() == "precious"
        forced = await relay(gateway, "backup", "--force", str(mine), "--output", "json")
        assert json.loads(forced.stdout) == {"file": str(mine), "bytes": mine.stat().st_size}
        verify_copy(mine)
        piped = tmp_path / "piped"
        with piped.open("wb") as out:
            arguments = command("backup", "-", "--admin", gateway.admin)
            process = await asyncio.create_subprocess_exec(*arguments, stdout=out, env=environment())
            assert await process.wait() == 0
        verify_copy(piped)
        for name in ("relay.db", "relay.db-wal"):
            over = await relay(gateway, "backup", "--force", str(tmp_path / name))
            assert over.returncode == 1
            assert "is a store that a relay uses" in over.stderr
        await posted(gateway, 2)
        nowhere = await relay(gateway, "backup", str(tmp_path / "no" / "copy"))
        assert nowhere.returncode == 1
        assert "No such file or directory" in nowhere.stderr


@contextmanager
def answering(body: bytes, length: int) -> Iterator[str]:
    """What looks like a relay that promises `length` bytes and sends these."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, *arguments: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(("sent", "words"), [(5000, "stopped after 5000 of 9999 bytes"), (9999, "no whole copy")])
def test_a_backup_that_is_not_whole_is_not_kept(tmp_path: Path, sent: int, words: str) -> None:
    """Cut short, or whole and no store: exit code 1, and neither the file nor a part of it is left."""
    with answering(bytes(sent), 9999) as url:
        done = run_relay("backup", "--admin", url, str(tmp_path / "copy"), cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_two_backups_to_one_file_do_not_mix(tmp_path: Path) -> None:
    """The second is refused and leaves the first's part as it is."""
    part = tmp_path / "copy.part"
    with part.open("wb") as first, answering(b"", 0) as url:
        fcntl.flock(first, fcntl.LOCK_EX)
        first.write(b"half of it")
        first.flush()
        done = run_relay("backup", "--admin", url, str(tmp_path / "copy"), cwd=tmp_path)
    assert (done.returncode, "another relay backup" in done.stderr) == (1, True)
    assert part.read_bytes() == b"half of it"


@pytest.mark.slow
async def test_prune_counts_and_erases_only_after_a_yes(tmp_path: Path) -> None:
    """No answer is a no; --yes does not ask; an unknown event is told."""
    async with Sink() as sink, Gateway(write_config(tmp_path / "config.yaml", sink)) as gateway:
        await steered(gateway, "disable")
        first, second = await posted(gateway, 1, 2)
        assert (await relay(gateway, "prune", "--dry-run")).stdout == "0 events would be pruned\n"
        assert (await relay(gateway, "prune")).stdout == "0 events pruned\n"
        foretold = await relay(gateway, "prune", "--event", first, "--dry-run")
        assert foretold.stdout == f"{first} with 1 delivery and all that is kept of it would be erased\n"
        for given in (b"", b"n\n", b"\n"):
            done = await relay(gateway, "prune", "--event", first, given=given)
            assert done.returncode == 1
            assert f"Erase {first}" in done.stderr
            assert "nothing was erased" in done.stderr
        assert len(rows(tmp_path / "relay.db", "SELECT id FROM event")) == 2
        done = await relay(gateway, "prune", "--event", first, given=b"y\n")
        assert (done.returncode, done.stdout) == (0, f"{first} with 1 delivery and all that is kept of it is erased\n")
        done = await relay(gateway, "prune", "--event", second, "--yes", "--output", "json")
        assert json.loads(done.stdout) == {"pruned": 1, "dry_run": False, "deliveries": 1}
        assert rows(tmp_path / "relay.db", "SELECT id FROM event") == []
        gone = await relay(gateway, "prune", "--event", first, "--yes")
        assert (gone.returncode, gone.stderr) == (1, "relay: no such event\n")
        assert [line["event_id"] for line in gateway.said("event.erased")] == [first, second]


@pytest.mark.slow
@pytest.mark.row("F6", "F5")
@pytest.mark.skipif(not can_mount(), reason="needs the right to mount")
async def test_a_disk_that_runs_full_bars_what_is_new_and_lets_the_rest_go_on(tmp_path: Path) -> None:
    """On a file system of 64 MiB with less than its reserve left: 503, deliveries go on; then room again by itself."""
    home = tmp_path / "store"
    home.mkdir()
    mount = f'mount -t tmpfs -o size=64m none {home} && exec "$@"'
    async with Sink() as sink:
        config = write_config(tmp_path / "config.yaml", sink)
        config.write_text(config.read_text().replace(f"{tmp_path}/relay.db", f"{home}/relay.db"))
        async with Gateway(config, within=["unshare", "-m", "sh", "-c", mount, "sh"]) as gateway:
            await steered(gateway, "disable")
            ids = await posted(gateway, 1, 2, 3)
            ballast = Path(f"/proc/{gateway.process.pid}/root{home}/ballast")
            ballast.write_bytes(bytes(61 * 1024**2))
            async with asyncio.timeout(20):
                while not gateway.said("store.full"):
                    await asyncio.sleep(0.05)
            status, _ = await gateway.post(*webhook(4))
            assert status == 503
            (line,) = gateway.said("store.full")
            assert "free on the disk" in line["reason"]
            assert gateway.said("store.nearly_full")
            refused = await relay(gateway, "backup", str(tmp_path / "copy"))
            assert (refused.returncode, "make room there first" in refused.stderr) == (1, True)
            assert not list(tmp_path.glob("copy*"))
            await steered(gateway, "enable")
            await until(lambda: sink.ids("crm") == ids)
            async with aiohttp.ClientSession() as session, session.get(f"{gateway.admin}/readyz") as answer:
                assert (await answer.json())["reasons"] == ["store_full"]
            ballast.unlink()
            await until(lambda: bool(gateway.said("store.accepting")))
            ids += await posted(gateway, 4)
            await until(lambda: sink.ids("crm") == ids)
            assert gateway.said("store.unavailable") == []
            assert not list(ballast.parent.glob("*.copy-*"))


numbers = itertools.count()


def large(number: int, size: int) -> tuple[str, bytes, dict[str, str]]:
    """The arguments of `Gateway.post` for one webhook of about this size."""
    source, _, headers = webhook(number)
    return source, json.dumps({"id": number, "filler": "x" * size}).encode(), headers


async def posted_at_once(gateway: Gateway, count: int, size: int) -> list[str]:
    """The ids of those that were taken; the others got 503 for want of room, and the store had no outage."""
    answers = await asyncio.gather(*(gateway.post(*large(next(numbers), size)) for _ in range(count)))
    assert gateway.said("store.unavailable") == []
    assert {status for status, _ in answers} <= {200, 503}
    return [answer["id"] for status, answer in answers if status == 200]


@pytest.mark.slow
@pytest.mark.row("F6", "F5")
@pytest.mark.skipif(not can_mount(), reason="needs the right to mount")
@pytest.mark.parametrize(("disk", "size", "count"), [("120m", 1_000_000, 30), ("40m", 20_000, 200)])
async def test_a_disk_that_the_store_itself_fills_is_never_used_up(
    tmp_path: Path, disk: str, size: int, count: int
) -> None:
    """However fast the events come: refused in time, also after a kill; what was taken is delivered, and what was
    delivered makes the room for new events, though nobody frees the disk."""
    home = tmp_path / "store"
    home.mkdir()
    async with Sink() as sink, small_disk(home, disk) as within:
        config = write_config(tmp_path / "config.yaml", sink)
        config.write_text(config.read_text().replace(f"{tmp_path}/relay.db", f"{home}/relay.db"))
        async with Gateway(config, within=within) as gateway:
            await steered(gateway, "disable")
            ids: list[str] = []
            taken: list[str] = []
            for _ in range(2):
                async with asyncio.timeout(60):
                    while not gateway.said("store.full") or taken:
                        taken = await posted_at_once(gateway, count, size)
                        ids += taken
                await gateway.kill()
                gateway.lines.clear()
                await gateway.start()
                assert (await gateway.targets())["crm"]["held"] == len(ids) > 60
            await until(lambda: bool(gateway.said("store.full")))
            await steered(gateway, "enable")
            await until(lambda: len(sink.arrivals) == len(ids))
            await until(lambda: bool(gateway.said("store.accepting") and gateway.said("events.pruned")))
            assert {line["reason"] for line in gateway.said("events.pruned")} == {"size"}
            ids += await posted(gateway, -1)
            await until(lambda: len(sink.arrivals) == len(ids))
            assert set(sink.ids("crm")) == set(ids)
            assert gateway.said("store.unavailable") == []
