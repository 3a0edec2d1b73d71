"""Bad input and how a command reports it."""

from __future__ import annotations

import os
import signal
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

    code = BAD_INPUT
    """That a command ends with."""


class Unavailable(InputError):
    """What is named rightly cannot be had now, from a server or a file system: the same command may do later."""

    code = FAILED


class TrainingAborted(Exception):
    """Numbers have gone bad, on every rank alike; the message says how and what to look at."""


def run_command(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Run a command's `main(argv)` and exit with its code; an `InputError` becomes one ``error:`` line and its code.

    A command that does not handle Ctrl-C itself ends by it with one line.
    """
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read the output has seen enough, as `head` has; what is still kept of it must not fail at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)
