"""One process a store, however it is called: by a link, a mount, from another network, or with its guard deleted."""

import os
import shutil
import time
from pathlib import Path

import pytest

from tests.support.program import Gateway, Sink, webhook, write_config

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounts and namespaces are root's to make")


def config_for(store: Path, sink: Sink, path: Path) -> Path:
    """A config of the same relay that calls its store so."""
    text = write_config(path, sink).read_text()
    path.write_text(text.replace(f"sqlite:///{path.parent}/relay.db", f"sqlite:///{store}"))
    return path


def mounted(what: Path, where: Path) -> tuple[str, ...]:
    """A command that runs another where a file or directory is also mounted elsewhere."""
    return ("unshare", "-m", "sh", "-c", f'mount --bind {what} {where} && exec "$@"', "sh")


@pytest.mark.slow
@AS_ROOT
@pytest.mark.timeout(180)
@pytest.mark.row("F11", "C53")
async def test_a_store_in_use_is_refused_by_whatever_name_it_is_called(tmp_path: Path) -> None:
    """Exit 75 at once, with the pid of who has it; the first goes on and nothing of it is touched."""
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir()
    other.mkdir()
    async with Sink() as sink, Gateway(write_config(home / "c.yaml", sink)) as first:
        assert (await first.post(*webhook(0)))[0] == 200
        store = home / "relay.db"
        (other / "link.db").symlink_to(store)
        os.link(store, other / "hard.db")
        (other / "mounted").mkdir()
        (other / "file.db").touch()
        names: dict[Path, tuple[str, ...]] = {
            store: (),
            other / "link.db": (),
            other / "hard.db": (),
            other / "mounted" / "relay.db": mounted(home, other / "mounted"),
            other / "file.db": mounted(store, other / "file.db"),
            home / ".." / "home" / "relay.db": ("unshare", "-n"),
        }
        for number, (name, within) in enumerate([*names.items(), (store, ())]):
            if number == len(names):
                shutil.move(home / "relay.db.guard", other / "guard")
            second = Gateway(config_for(name, sink, other / f"{number}.yaml"), within=within)
            began = time.monotonic()
            with pytest.raises(AssertionError, match=f"in use by another relay.*\\(process {first.process.pid}\\)"):
                await second.start()
            assert await second.ended() == 75, name
            print(name, f"{time.monotonic() - began:.2f} s")
            assert time.monotonic() - began < 45  # under a second at rest; what counts is that it does not wait
            assert (await first.post(*webhook(number + 1)))[0] == 200
        await first.kill()
        await first.start()
        assert (await first.post(*webhook("after")))[0] == 200


@pytest.mark.slow
@AS_ROOT
@pytest.mark.row("C50")
async def test_a_port_that_only_root_may_have_is_named(tmp_path: Path) -> None:
    """Exit 69, the address and the reason; the store is let go of, and another address is fine."""
    async with Sink() as sink:
        config = write_config(tmp_path / "c.yaml", sink)
        text = config.read_text()
        config.write_text(text.replace("127.0.0.1:0", "127.0.0.1:80", 1))
        unprivileged = ("unshare", "-n", "sh", "-c", 'ip link set lo up; exec setpriv --bounding-set -all "$@"', "sh")
        gateway = Gateway(config, within=unprivileged)
        with pytest.raises(AssertionError, match=r"cannot listen on 127\.0\.0\.1:80: .*ermission denied"):
            await gateway.start()
        assert await gateway.ended() == 69
        config.write_text(text)
        async with Gateway(config) as allowed:
            assert (await allowed.post(*webhook(1)))[0] == 200
