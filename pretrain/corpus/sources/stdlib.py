"""The text that is on every machine which runs this."""

from __future__ import annotations

import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pretrain.corpus.sources.documents import utf8_error
from pretrain.corpus.sources.files import local_files
from pretrain.corpus.sources.unit import Document, Unit, group_into_units
from pretrain.schema import Section


class PythonStandardLibrary(Section):
    """Source code of the running interpreter's standard library and, where installed, its documentation.

    Files that are not UTF-8 are left out.
    """

    kind: Literal["python_stdlib"]
    licence: str = "PSF-2.0"

    @property
    def state(self) -> str:
        return f"Python {platform.python_version()}"

    def units(self) -> list[Unit]:
        library = Path(sysconfig.get_path("stdlib"))
        # Tests of the library are packaged apart on Debian and others: left out, the corpus is the same everywhere.
        left_out = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
        code = [p for p in library.rglob("*.py") if not left_out.intersection(p.relative_to(library).parts)]
        documentation = Path("/usr/share/doc", f"python{sysconfig.get_python_version()}", "html", "_sources")
        files = local_files(code, library, prefix="lib/") + local_files(
            documentation.rglob("*.txt"), documentation, prefix="doc/"
        )
        return group_into_units(files)

    def documents(self, unit: Unit) -> Iterator[Document]:
        for file in unit.files:
            text = Path(file.path).read_bytes()
            if utf8_error(text) is None:
                yield Document(file.id, text)
