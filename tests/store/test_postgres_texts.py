"""Text for PostgreSQL: globs as its regular expressions, and what it cannot hold."""

import re
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.store.postgres.texts import glob_regex, storable

SIGNS = "abz!-]^[\\*?.&~|Z_0 \n$(){}+:=/#é\u0100\U0001f600"
TEXTS = st.text(st.sampled_from([*SIGNS]) | st.characters(exclude_categories=["Cs"], min_codepoint=1), max_size=6)
GLOBS = st.text(st.sampled_from([*SIGNS, *"[[]]--!*?"]) | st.characters(), max_size=12)


def finds(glob: str, text: str) -> bool:
    """Whether the expression finds the text. It is made of what means the same to Python, where a dot is any sign and
    the end is no line's; see `fullmatch`."""
    return re.fullmatch(glob_regex(glob), text, re.DOTALL) is not None


@given(GLOBS, TEXTS)
def test_a_glob_means_what_it_means_in_a_route(glob: str, text: str) -> None:
    """Whatever is written: the expression finds what `fnmatchcase` finds."""
    assert finds(glob, text) == fnmatchcase(text, glob)


@given(GLOBS, TEXTS)
def test_a_set_means_what_it_means_in_a_route(glob: str, text: str) -> None:
    """Ranges, also empty ones, a bracket that stands first, and signs that mean something elsewhere."""
    for sign in [*text, *SIGNS]:
        assert finds(f"[{glob}]", sign) == fnmatchcase(sign, f"[{glob}]")


@pytest.mark.parametrize(
    ("glob", "expression"),
    [
        ("order.*", r"^order\U0000002e.*$"),
        ("**?", "^.*.$"),
        ("[z-a]", "^(?!)$"),
        ("[b-d]", "^[b-bc-cd-d]$"),
        ("[a", r"^\U0000005ba$"),
        ("\0\ud800", r"^\U00000000\U0000d800$"),
    ],
)
def test_an_expression_names_each_sign_that_could_mean_more(glob: str, expression: str) -> None:
    """And what the database cannot hold: there it stands for what is never found."""
    assert glob_regex(glob) == expression


@given(st.text())
def test_every_text_can_be_stored(text: str) -> None:
    """What the database cannot hold is shown escaped, and all else stays as it is."""
    found = storable(text)
    assert "\0" not in found
    assert found.encode("utf-8").decode() == found
    assert storable(found) == found


def test_what_cannot_be_stored_is_shown_escaped() -> None:
    """As people write it."""
    assert storable("a\0b\udc80é") == "a\\x00b\\udc80é"
