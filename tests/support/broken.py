"""A copy of the package with a line of it broken, so that a test can be seen to find what it is there to find."""

import shutil
from pathlib import Path

import relay


def with_break(tmp: Path, file: str, old: str, new: str) -> Path:
    """Break one place of a copy of the package; a second call with the same `tmp` breaks the same copy further.

    Args:
        tmp: where the copy is, or is to be made.
        file: the module, from the package's directory on: `store/sqlite/connection.py`.
        old: what stands there, exactly once.
        new: what is to stand there instead.

    Returns:
        The directory to run it from: `python -m relay` there, or with it on PYTHONPATH, is the broken one.
    """
    home = tmp / "broken"
    package = home / "relay"
    if not package.exists():
        shutil.copytree(Path(relay.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    module = package / file
    text = module.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{file} has {old!r} {text.count(old)} times"
    module.write_text(text.replace(old, new), encoding="utf-8")
    return home
