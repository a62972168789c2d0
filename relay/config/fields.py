"""What a section's keys are made of: the types of values, each with its parser and what editors see of it.

Law: a type reads a value whole or refuses it in words; what an editor is told is no stricter than the parser.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

from relay.config import values
from relay.config.expressions import condition
from relay.config.settings import Address
from relay.config.values import SecretText
from relay.model import IPNetwork, Rate, StatusSet

_REFERENCE = r"\$\{"
"""What a string of any type may be instead: a variable that is expanded later."""
_DAY = timedelta(days=1)


def setting(**about: Any) -> Any:
    """A key; its default stands as the user would write it, so it has another type than the parsed value."""
    return Field(**about)


@dataclass(frozen=True, slots=True, eq=False)
class Parsed:
    """A value that `parse` reads whole; editors see `schema`."""

    parse: Callable[[Any], Any]
    schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "string"})

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self.parse)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return dict(self.schema)


class OneOrMore:
    """A list in whose place its only item may stand."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(_listed, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        many = handler(schema)
        return {"anyOf": [many["items"], many]}


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str | int | float) else value


def matching(pattern: str) -> dict[str, Any]:
    """The schema of a string that fits a pattern, or holds a variable."""
    return {"type": "string", "pattern": f"{pattern}|{_REFERENCE}"}


def one_of(known: tuple[str, ...], *, what: str) -> Parsed:
    """One of some words."""
    schema = {"anyOf": [{"enum": list(known)}, {"type": "string", "pattern": _REFERENCE}]}
    return Parsed(partial(values.choice, known=known, what=what), schema)


def span(low: timedelta, high: timedelta) -> Parsed:
    """A duration between two."""
    return Parsed(partial(values.duration, low=low, high=high), matching(r"^[0-9]+(ms|s|m|h|d)$"))


def whole(low: int, high: int) -> Parsed:
    """A whole number between two."""
    whole = {"type": "integer", "minimum": low, "maximum": high}
    schema = {"anyOf": [whole, {"type": "string", "pattern": _REFERENCE}]}
    return Parsed(partial(values.integer, low=low, high=high), schema)


_STATUS = {"type": ["integer", "string"]}

Text = Annotated[str, Parsed(values.text)]
SecretValue = Annotated[SecretText, Parsed(values.secret)]
Flag = Annotated[bool, Parsed(values.boolean, {"type": "boolean"})]
Listen = Annotated[Address, Parsed(values.address, matching("^.+:[0-9]{1,5}$"))]
Size = Annotated[int, Parsed(partial(values.size, low=1, high=64 * 1024**2), matching(f"^{values.SIZE.pattern}$"))]
StoreSize = Annotated[
    int, Parsed(partial(values.size, low=1024**2, high=1024**5), matching(f"^{values.SIZE.pattern}$"))
]
HeaderName = Annotated[str, Parsed(values.header_name, matching(f"^{values.HEADER_NAME.pattern}$"))]
MatchedValue = Annotated[str, Parsed(values.matched_value)]
HeaderValue = Annotated[str, Parsed(values.header_value)]
ListenPath = Annotated[str, Parsed(values.listen_path, matching(f"^{values.PATH.pattern}$"))]
Networks = Annotated[list[Annotated[IPNetwork, Parsed(values.network)]], OneOrMore()]
Condition = Annotated[str, Parsed(condition)]
Marked = Annotated[str, Parsed(values.marked)]
"""Text that a message may repeat, unless it was expanded."""
Texts = Annotated[list[Marked], OneOrMore()]
HeaderNames = Annotated[
    list[Annotated[str, Parsed(values.marked_header_name, matching(f"^{values.HEADER_NAME.pattern}$"))]], OneOrMore()
]
Timeout = Annotated[timedelta, span(timedelta(milliseconds=100), timedelta(minutes=10))]
Fetching = Annotated[timedelta, span(timedelta(milliseconds=100), timedelta(seconds=30))]
Drain = Annotated[timedelta, span(timedelta(0), timedelta(minutes=10))]
Kept = Annotated[timedelta, span(timedelta(seconds=1), 3650 * _DAY)]
Wait = Annotated[timedelta, span(timedelta(milliseconds=100), 30 * _DAY)]
Expected = Annotated[timedelta, span(timedelta(minutes=1), 365 * _DAY)]
Tolerance = Annotated[timedelta, span(timedelta(seconds=1), 7 * _DAY)]
RateLimit = Annotated[Rate, Parsed(values.rate, matching(f"^{values.RATE.pattern}$"))]
Statuses = Annotated[StatusSet, Parsed(values.statuses, {"anyOf": [_STATUS, {"type": "array", "items": _STATUS}]})]
Policy = Annotated[Literal["private", "public"], one_of(("private", "public"), what="policy")]
Level = Annotated[
    Literal["debug", "info", "warning", "error"], one_of(("debug", "info", "warning", "error"), what="level")
]
Format = Annotated[Literal["auto", "json", "console"], one_of(("auto", "json", "console"), what="format")]
Algorithm = Annotated[Literal["sha256", "sha512", "sha1"], one_of(("sha256", "sha512", "sha1"), what="algorithm")]
Encoding = Annotated[Literal["hex", "base64"], one_of(("hex", "base64"), what="encoding")]


class Section(BaseModel):
    """A mapping of the document; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)
    later: ClassVar[frozenset[str]] = frozenset()
    """Keys of the contract that are not built yet."""
