"""A number of JSON that keeps the text it was written in.

Law: a number that a float would write in another way still reckons as that float, and is written as it came.
"""

from typing import Self


class Exact(float):
    """A number whose text a float would not give back."""

    __slots__ = ("text",)
    text: str

    def __new__(cls, text: str) -> Self:
        made = super().__new__(cls, text)
        made.text = text
        return made

    def __repr__(self) -> str:
        return self.text

    __str__ = __repr__


Exact.__name__ = "float"  # JMESPath knows a number by the name of its type


def number(text: str) -> float:
    """A fraction, or a number with an exponent, out of its text."""
    plain = float(text)
    return plain if repr(plain) == text else Exact(text)
