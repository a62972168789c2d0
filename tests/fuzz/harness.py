"""Runs one target under a coverage-guided fuzzer until its time is over, or it has found something.

`python -m tests.fuzz.harness TARGET SECONDS FOLDER`: what was found stands in FOLDER, with its traceback on stderr.
"""

import asyncio
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import atheris  # type: ignore[import-not-found, unused-ignore]

with atheris.instrument_imports(include=["relay"]):
    from tests.fuzz import targets
    from tests.http.configs import document
    from tests.http.gateway import Gateway, Target, running, wired
    from tests.support.hostile import CANARY, samples, statuses

ALLOWED = {100, 200, 400, 401, 403, 404, 405, 408, 413, 415, 417, 421, 422, 505, 508}
QUICK = {"header_timeout": "500ms", "body_timeout": "500ms"}


def serving(folder: Path) -> Callable[[bytes], None]:
    """The raw bytes of a request, to both listeners of a relay that lives as long as the process."""
    runner = asyncio.Runner()
    target = Target()
    runner.run(target.start())
    context = running(folder, document(server=QUICK), target)
    gateway: Gateway = runner.run(context.__aenter__())

    async def throw(data: bytes) -> None:
        for address in (gateway.hooks, gateway.admin):
            async with wired(address) as wire:
                await wire.send(data)
                with contextlib.suppress(OSError):
                    wire.writer.write_eof()
                answered = await wire.rest()
                assert CANARY not in answered
                assert set(statuses(answered)) <= ALLOWED, answered
        assert b'"level":"error"' not in gateway._log.getvalue(), gateway.log_text()[-2000:]
        if gateway._log.tell() > 1_000_000:
            gateway._log.seek(0)
            gateway._log.truncate()

    def thrown(data: bytes, _context: object = context) -> None:
        runner.run(throw(data))

    return thrown


def main() -> None:
    """Fuzz."""
    name, seconds, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    if name == "http":
        target, seeds = serving(folder), [one for path in (b"/hooks/open", b"/metrics") for one in samples(path, b"k")]
    else:
        target, seeds = getattr(targets, name), targets.seeds(name)
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)
    options = [f"-max_total_time={seconds}", "-seed=1", "-max_len=4096", "-timeout=20", "-rss_limit_mb=3000"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", "-print_final_stats=1", str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
