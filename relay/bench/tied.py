"""A command that does not outlive who has started it: `python -m relay.bench.tied COMMAND ...`.

Law: a measurement that is killed leaves no relay behind. Where the system cannot see to that (it is Linux's own), the
command runs all the same.
"""

import ctypes
import os
import signal
import sys

_SET_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl(2); it stays with the process when it becomes another program."""


def main() -> None:
    """Become the command."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, int(signal.SIGKILL))
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])  # noqa: S606 - ourselves, with what we were given


if __name__ == "__main__":
    main()
