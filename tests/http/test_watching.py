"""A watch over the files of a config: what makes it act, and what does not."""

from typing import Any

import pytest

from relay.watching import Watch
from tests.http.configs import SOURCES, document
from tests.http.gateway import Gateway, Start

OPEN, MORE = ({name: SOURCES[name] for name in names} for names in (("open",), ("open", "key")))


@pytest.fixture
async def watched(start: Start) -> Gateway:
    """A relay with one source."""
    return await start(OPEN)


def watch(gateway: Gateway) -> Watch:
    return Watch(gateway.app._reloading, is_ready=lambda: True)


async def told(gateway: Gateway) -> list[Any]:
    """The reloads so far, in order."""
    return [line["event"] for line in await gateway.log() if line["event"].startswith("config.reload")]


async def looks(one: Watch, number: int = 4) -> None:
    for _ in range(number):
        await one.look()


async def test_the_content_alone_counts(watched: Gateway) -> None:
    """A touch and a rename of the same content are nothing; another content is taken up once."""
    one = watch(watched)
    await looks(one)
    watched.config.touch()
    watched.config.rename(watched.config.with_name("old"))
    watched.config.write_text(document(OPEN))
    await looks(one)
    assert await told(watched) == []
    watched.config.write_text(document(MORE))
    await looks(one)
    assert await told(watched) == ["config.reloaded"]


async def test_a_file_that_is_being_written_is_left_alone(watched: Gateway) -> None:
    """What the next look does not find again is no config yet, and nor is a file that is gone for a moment."""
    one = watch(watched)
    await looks(one)
    for text in ("sources: {", document(MORE)[:200]):
        watched.config.write_text(text)
        await one.look()
        watched.config.unlink()
        await one.look()
    watched.config.write_text(document(OPEN))
    await looks(one)
    assert await told(watched) == []


async def test_what_was_refused_is_not_tried_again_until_it_changes(watched: Gateway) -> None:
    """One line for a bad content, one for a file that stays missing, and both are over when a good one is there."""
    one = watch(watched)
    watched.config.write_text("sources: nothing")
    await looks(one)
    assert await told(watched) == ["config.reload_refused"]
    watched.config.unlink()
    await looks(one)
    assert await told(watched) == ["config.reload_refused"] * 2
    watched.config.write_text(document(OPEN))
    await looks(one)
    assert await told(watched) == [*["config.reload_refused"] * 2, "config.reloaded"]


async def test_a_secret_that_was_missing_is_taken_up_when_it_comes(watched: Gateway) -> None:
    """A config that is refused for a file is tried again with that file."""
    secret = watched.config.with_name("secret")
    text = document(OPEN | {"key": SOURCES["key"] | {"secrets": [f"${{file:{secret}}}"]}})
    one = watch(watched)
    watched.config.write_text(text)
    await looks(one)
    assert await told(watched) == ["config.reload_refused"]
    secret.write_text("a-sound-secret-of-ours")
    await looks(one)
    assert await told(watched) == ["config.reload_refused", "config.reloaded"]


async def test_a_reload_by_another_way_is_not_made_again(watched: Gateway) -> None:
    """What SIGHUP or the API has taken up or refused is known to the watch."""
    one = watch(watched)
    await looks(one)
    for text in (document(MORE), "sources: nothing"):
        await watched.reload(text)
        await looks(one)
    assert await told(watched) == ["config.reloaded", "config.reload_refused"]
