"""Options of the tests: `--row NAME` runs what meets a row of the table of faults, the longer tests included."""

import signal

import pytest
from hypothesis import settings

from tests.support.rows import rows

settings.register_profile("relay", deadline=None)  # an example takes as long as a busy machine lets it
settings.load_profile("relay")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Make the option known."""
    parser.addoption("--row", action="append", default=[], help="Only tests that meet this row; repeatable.")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Asked for by name, a longer test is wanted. And what the tests start hears Ctrl-C, also where they themselves
    were started in the background, which shells do with that signal ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    wanted = config.getoption("--row")
    if unknown := sorted(set(wanted) - rows().keys()):
        raise pytest.UsageError(f"no such row: {', '.join(map(repr, unknown))}; they stand in tests/support/rows.py")
    if wanted:
        config.option.markexpr = "not soak"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what does not meet one of the rows."""
    wanted = set(config.getoption("--row"))
    if not wanted:
        return
    kept = [item for item in items if any(wanted & set(mark.args) for mark in item.iter_markers("row"))]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
