"""Bad input and how a command reports it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

DONE = 0
FAILED = 1
BAD_INPUT = 2
ABORTED = 3
STOPPED = 75


class InputError(Exception):
    """Something the user wrote or pointed to is wrong; the message names it and says what would be right."""


class TrainingAborted(Exception):
    """Numbers have gone bad, on every rank alike; the message says how and what to look at."""


def run_command(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a command's `main(argv)` and exit with its code; an `InputError` becomes one ``error:`` line and code 2."""
    try:
        code = main(sys.argv[1:])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = BAD_INPUT
    sys.exit(code)
