"""When the loop stands still for a transaction rather than goes on beside it.

Law: never for long, and not again soon where that was in vain: a disk that is slow or hangs must not hold up what has
nothing to do with it.

Beside a busy loop most of a small transaction's time goes into the interpreter's lock, which the two threads hand to
and fro at each statement. One operation that comes alone mostly comes to a loop that has nothing else to do, and of a
large transaction the loop would wait for too long.
"""

FEW, MANY = 2, 32
"""Operations of a transaction that the loop stands still for, from and to."""
LONGEST_S = 0.002
"""Seconds for which it does so at most: several times what such a transaction takes on a disk that is well."""
MOST_PASSED = 63
"""Transactions that go beside it after one for which it stood in vain; one, at first."""


class Stillness:
    """What is worth standing still for, by how the last time went."""

    def __init__(self) -> None:
        self._passed = 0
        self._left = 0

    def is_worth(self, operations: int) -> bool:
        """Whether the loop is to stand still for the next transaction, of so many operations."""
        if not FEW <= operations <= MANY:
            return False
        if self._left > 0:
            self._left -= 1
            return False
        return True

    def stood(self, is_in_vain: bool) -> None:  # noqa: FBT001 - all that there is to say
        """It has, and the transaction was not over by then, or it was."""
        self._passed = min(MOST_PASSED, 2 * self._passed + 1) if is_in_vain else 0
        self._left = self._passed
