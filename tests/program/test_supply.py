"""What Relay is made of and how it runs: pinned by hash, never outdated, as nobody, on a read-only file system."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from relay.process import outdated
from tests.support.program import Gateway, Sink, until, webhook, write_config

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
NOBODY = 64_123
PIN = re.compile(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)( ; [^\\]+)?((?: --hash=sha256:[0-9a-f]{64})+)")


def lines(name: str) -> list[str]:
    """The requirements of a lock, each with its hashes on one line."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    return [re.sub(r" +", " ", line) for line in text.splitlines() if line and not line.startswith("#")]


def least(requirement: str) -> tuple[str, tuple[int, ...]]:
    """A requirement's name, and the version that it asks for at least."""
    name = re.match(r"[A-Za-z0-9-]+", requirement)
    version = re.search(r">=([0-9.]+)", requirement)
    assert name is not None
    assert version is not None, f"{requirement} has no least version"
    return name[0].lower(), numbers(version[1])


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]+", version))


@pytest.mark.row("T63")
def test_the_image_is_made_of_files_known_by_their_hashes() -> None:
    """Every distribution, those that others need included, is pinned with hashes; none stands by an address."""
    for name in (".requirements.lock", ".build.lock"):
        for line in lines(name):
            assert PIN.fullmatch(line), line
        assert "://" not in (ROOT / name).read_text()
    assert len(lines(".requirements.lock")) > len(PROJECT["project"]["dependencies"])


@pytest.mark.row("T63")
@pytest.mark.parametrize("lock", [".requirements.lock", ".build.lock"])
def test_a_lock_has_what_the_project_asks_for(lock: str) -> None:
    """A dependency that was added, or a least version that was raised, makes the lock outdated, and fails here."""
    extras = PROJECT["project"]["optional-dependencies"]
    asked = [*PROJECT["project"]["dependencies"], *extras["speed"], *extras["postgres"]]
    asked = asked if lock == ".requirements.lock" else PROJECT["build-system"]["requires"]
    pins = {pin[1]: numbers(pin[2]) for line in lines(lock) if (pin := PIN.fullmatch(line))}
    for name, version in map(least, asked):
        assert pins[name] >= version, name


@pytest.mark.row("T63")
def test_a_lock_has_all_that_its_parts_need() -> None:
    """Nothing is left to be resolved, and so to be chosen by somebody else, when the image is built."""
    pins = {pin[1] for line in lines(".requirements.lock") if (pin := PIN.fullmatch(line))}
    for name in pins:
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # it is for another system than this one
        for need in needs:
            if ";" not in need:
                match = re.match(r"[A-Za-z0-9._-]+", need)
                assert match is not None
                assert re.sub(r"[-_.]+", "-", match[0]).lower() in pins, f"{name} needs {need}"


@pytest.mark.row("T63")
def test_the_dockerfile_installs_nothing_else() -> None:
    """Each `pip install` goes by hashes, or takes the wheel that was just built, without a registry."""
    joined = DOCKERFILE.replace("\\\n", " ")
    installs = re.findall(r"pip\b[^&\n]*\binstall\b[^&\n]*", "\n".join(re.findall(r"^RUN (.*)$", joined, re.MULTILINE)))
    assert len(installs) == 3
    for install in installs:
        assert "--require-hashes" in install or ("--no-index" in install and "--no-deps" in install), install
    for lock in (".requirements.lock", ".build.lock"):
        assert f"!{lock}" in (ROOT / ".dockerignore").read_text().splitlines()


@pytest.mark.row("T63")
def test_nothing_that_is_installed_is_outdated() -> None:
    """This very environment meets the least versions."""
    assert outdated() == []


@pytest.mark.row("T63")
@pytest.mark.parametrize(
    ("name", "version", "is_refused"),
    [
        ("aiohttp", "3.9.1", True),
        ("aiohttp", "3.14.4", True),
        ("aiohttp", "3.14.5", False),
        ("aiohttp", "3.15.0b1", False),
        ("Jinja2", "3.1", True),
        ("tenacity", "9", False),
        ("pydantic", "nonsense", True),
    ],
)
def test_a_relay_on_outdated_parts_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, version: str, *, is_refused: bool
) -> None:
    """Their faults are known to everybody; it says which part is too old, and which version will do."""
    installed = tmp_path / f"{name}-{version}.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [line.split(" (")[0].lower() for line in outdated()] == ([f"{name} {version}".lower()] if is_refused else [])


@pytest.mark.row("T63")
def test_the_command_refuses_outdated_parts(tmp_path: Path) -> None:
    """With exit code 1 and one line, before anything is bound or made."""
    installed = tmp_path / "old" / "aiohttp-3.9.1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: aiohttp\nVersion: 3.9.1\n")
    config = write_config(tmp_path / "c.yaml", Sink(port=9))
    done = subprocess.run(
        [sys.executable, "-m", "relay", "run", "--config", str(config)],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "old")},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert "relay.start_refused" in done.stdout
    assert "aiohttp 3.9.1 (needs 3.14.5)" in done.stdout
    assert not (tmp_path / "relay.db").exists()


@pytest.mark.row("T64")
def test_the_dockerfile_leaves_root_and_owns_nothing() -> None:
    """A number that is not 0, after everything was put there by root; the store's directory is nobody else's."""
    user = re.findall(r"^USER (\S+)$", DOCKERFILE, re.MULTILINE)[-1]
    assert re.fullmatch(r"[1-9][0-9]{4,}:[1-9][0-9]{4,}", user)
    uid = user.partition(":")[0]
    after = DOCKERFILE[DOCKERFILE.index(f"USER {user}") :]
    assert not re.search(r"^(RUN|COPY|ADD)\b", after, re.MULTILINE), "nothing is made by, and for, who runs it"
    final = DOCKERFILE[DOCKERFILE.rindex("FROM ") :]
    assert not re.search(r"--chown|chmod [0-7]*7\b", final), "it cannot rewrite itself"
    assert re.search(rf"install -d -m 0700 -o {uid} -g {uid} /var/lib/relay", final)
    assert re.findall(r"^WORKDIR (\S+)$", final, re.MULTILINE) == ["/var/lib/relay"]
    assert re.findall(r"^VOLUME (\S+)$", final, re.MULTILINE) == ["/var/lib/relay"]
    assert not re.search(r"^ADD\b|curl|wget|apt-get", DOCKERFILE, re.MULTILINE), "nothing is fetched without a hash"
    assert re.search(r"^ENV PYTHONDONTWRITEBYTECODE=1", final, re.MULTILINE)


def within(folder: Path) -> tuple[str, ...]:
    """A command that runs another one as nobody, without a capability, where all but `folder` is read-only."""
    script = (
        "mount -o remount,ro,bind / && "
        "for m in /tmp /var /dev/shm; do ! mountpoint -q $m || mount -o remount,ro,bind $m; done && "
    )
    own = f"mount --bind {folder} {folder} && mount -o remount,rw,bind {folder} && cd {folder} && "
    drop = f"exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups --bounding-set=-all --no-new-privs "
    return ("unshare", "-m", "sh", "-c", script + own + drop + '"$0" "$@"')


@pytest.mark.slow
@pytest.mark.row("T64")
async def test_it_runs_as_nobody_on_a_file_system_that_it_cannot_write(tmp_path: Path) -> None:
    """Only the store's directory may be written; it receives, delivers, compacts, is asked, and stops as ever."""
    if os.geteuid() != 0 or not (shutil.which("unshare") and shutil.which("setpriv")):
        pytest.skip("only root can make a name space of mounts, and it takes util-linux")
    home = tmp_path / "home"
    home.mkdir()
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    async with Sink() as sink:
        config = write_config(home / "c.yaml", sink)
        for path in (home, config):
            os.chown(path, NOBODY, NOBODY)
        gateway = Gateway(config, within=within(home))
        async with gateway:
            for number in range(20):
                assert (await gateway.post(*webhook(number)))[0] == 200
            await until(lambda: len(sink.arrivals) == 20)
            status = Path(f"/proc/{gateway.process.pid}/status").read_text()
            assert re.search(rf"^Uid:\t{NOBODY}\t{NOBODY}", status, re.MULTILINE)
            assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
            assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
            table = Path(f"/proc/{gateway.process.pid}/mountinfo").read_text().splitlines()
            mounts = {line.split(" ")[4]: line.split(" ")[5].split(",")[0] for line in table}
            assert (mounts["/"], mounts[str(home)]) == ("ro", "rw")
            assert {mounts.get(place, "ro") for place in ("/tmp", "/var", "/dev/shm")} == {"ro"}
            written = {str(fd.readlink()) for fd in Path(f"/proc/{gateway.process.pid}/fd").iterdir()}
            assert [name for name in written if name.startswith("/") and name.endswith((".db", ".db-wal"))]
            gateway.process.terminate()
            assert await gateway.ended() == 0
    assert gateway.errors == b""
    assert {path.name for path in home.iterdir()} >= {"c.yaml", "relay.db"}
    assert all(path.stat().st_uid == NOBODY for path in home.iterdir())
