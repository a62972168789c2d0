"""From a file to a checked `Config`: read, expand, validate, build.

Law: nothing but `ConfigRefused` is raised for what a file holds. A key that cannot be read is reported and taken out,
and the rest is judged all the same, so that every problem is told in one go.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from relay.config import checks, document
from relay.config.expansion import TooLarge, plain_values
from relay.config.places import section_at, tellable
from relay.config.problems import ConfigRefused, KeyPath, Problem, Report, key_name, kind, nearest, quoted
from relay.config.schema import JUDGED_ON, DocumentSection
from relay.config.settings import Config

DEFAULT_PATHS = (Path("config.yaml"), Path("/etc/relay/config.yaml"))


def find(explicit: Path | None, env: Mapping[str, str]) -> Path:
    """The config to read: `explicit`, else $RELAY_CONFIG, else the first default that exists.

    Raises `ConfigRefused`, which says where it looked, when there is none.
    """
    if explicit is not None:
        return explicit
    if named := env.get("RELAY_CONFIG"):
        return Path(named)
    for path in DEFAULT_PATHS:
        if _is_there(path):
            return path
    places = ", ".join(("--config FILE", "$RELAY_CONFIG", "./config.yaml", str(DEFAULT_PATHS[-1])))
    raise ConfigRefused(DEFAULT_PATHS[0], [Problem(None, None, "", f"no config found; looked at {places}")])


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return True  # it cannot be looked at, and reading it will tell why


def load(path: Path, env: Mapping[str, str]) -> Config:
    """The configuration in the file at `path`, variables taken from `env`.

    Binds nothing and creates nothing. Raises `ConfigRefused` with every problem of the file.
    """
    read = document.read(path, tellable=tellable)
    report = Report(read.locate, tellable)
    report.files[path] = read.fingerprint
    if read.root is None:
        raise ConfigRefused(path, read.problems or [_empty()], report.files)
    if not isinstance(read.root, document.Table):
        if isinstance(read.root, document.Scalar) and read.root.value is None:
            raise ConfigRefused(path, [_empty()], report.files)
        raise ConfigRefused(path, [*read.problems, _not_a_mapping(read.root)], report.files)
    try:
        plain = plain_values(read.root, env, report)
    except TooLarge as error:
        raise ConfigRefused(path, [Problem(None, None, "", str(error))], report.files) from None
    plain = {key: value for key, value in plain.items() if value is not None}
    if not plain and not report.problems and not read.problems:
        raise ConfigRefused(path, [_empty()], report.files)
    config = checks.config(_validated(plain, report), plain, path, report)
    if problems := (*read.problems, *report.problems):
        raise ConfigRefused(path, problems, report.files)
    return config


def _empty() -> Problem:
    return Problem(None, None, "", "is empty; needs `sources` and `targets`")


def _not_a_mapping(root: document.Node) -> Problem:
    found = "list" if isinstance(root, document.Listing) else kind(getattr(root, "value", None))
    return Problem(root.place.line, root.place.column, "", f"top level must be a mapping, found {found}")


def _validated(plain: dict[str, Any], report: Report) -> DocumentSection:
    """The document's sections; what does not validate is reported and left out."""
    remaining = _copied(plain)
    while True:
        try:
            return DocumentSection.model_validate(remaining)
        except ValidationError as error:
            for detail in sorted(error.errors(include_url=False), key=lambda detail: detail["type"] == "missing"):
                _refuse(detail, plain, report)
                _leave_out(remaining, detail)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _refuse(detail: ErrorDetails, plain: Mapping[str, Any], report: Report) -> None:
    path: KeyPath = detail["loc"]
    match detail["type"]:
        case "value_error":
            report.refuse(path, str(detail["ctx"]["error"]))
        case "missing":
            if not report.is_broken(path):
                report.refuse(path, "missing")
        case "extra_forbidden":
            _refuse_key(path, plain, report)
        case "model_type" | "dict_type" | "model_attributes_type":
            report.refuse(path, f"must be a mapping, found {kind(detail['input'])}")
        case "list_type":
            report.refuse(path, f"must be a list, found {kind(detail['input'])}")
        case "too_long":
            report.refuse(path, f"has more than {detail['ctx']['max_length']} items")
        case other:
            report.refuse(path, f"is not acceptable ({other})")


def _refuse_key(path: KeyPath, plain: Mapping[str, Any], report: Report) -> None:
    """Report an unknown key; where another one was meant, that one is not told to be missing as well."""
    section, key = section_at(path[:-1]), str(path[-1])
    if key in section.later:
        report.refuse(path, "is not built yet in this version")
        return
    known = [field.alias or name for name, field in section.model_fields.items()]
    meant = nearest(key, known)
    hint = f"; did you mean {quoted(meant)}?" if meant else f"; known: {', '.join(known)}"
    name = key_name(key) if tellable(path) == path else "(it may be a secret, so it is not shown)"
    report.refuse(path, f"unknown key {name}{hint}")
    beside: Any = plain
    for step in path[:-1]:
        beside = beside[step]
    if meant is not None and meant not in beside:
        report.mark_broken((*path[:-1], meant))


def _leave_out(remaining: dict[str, Any], detail: ErrorDetails) -> None:
    """Take out what did not validate: a key, or the whole list around an item unless its other items are judged on."""
    path = detail["loc"][:-1] if detail["type"] == "missing" else detail["loc"]
    holder: Any = remaining
    for depth, step in enumerate(path):
        if not isinstance(holder, dict | list) or (isinstance(holder, dict) and step not in holder):
            return  # went with an earlier problem
        inner: Any = holder[step]  # type: ignore[index] # a list's steps are indexes
        is_entered = isinstance(inner, dict) or (isinstance(inner, list) and step in JUDGED_ON)
        if depth == len(path) - 1 or not is_entered:
            break
        holder = inner
    if isinstance(holder, list):
        holder[int(step)] = None
    else:
        del holder[step]
