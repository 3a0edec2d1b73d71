"""How the commands read their arguments."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from pretrain.errors import InputError


class ArgumentParser(argparse.ArgumentParser):
    """Shows its examples as written, takes no abbreviations and reports a mistake as an `InputError`."""

    def __init__(self, *, description: str | None, examples: str, prog: str | None = None):
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        if wrong := re.fullmatch(r"argument (?:.*/)?(-.*): invalid (int|float) value: (.*)", message):
            option, kind, value = wrong.groups()
            raise InputError(f"{option}: must be a {'whole number' if kind == 'int' else 'number'}, not {value}")
        raise InputError(f"{message}; see --help")
