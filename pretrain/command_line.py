"""How the commands read their arguments."""

from __future__ import annotations

import argparse
from typing import NoReturn

from pretrain.errors import InputError


class ArgumentParser(argparse.ArgumentParser):
    """Shows its examples as written, takes no abbreviations and reports a mistake as an `InputError`."""

    def __init__(self, *, description: str | None, examples: str):
        super().__init__(
            description=description,
            epilog=f"examples:\n{examples}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see --help")
