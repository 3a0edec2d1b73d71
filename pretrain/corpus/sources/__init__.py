"""Where documents come from."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pretrain.corpus.sources.formats import ArrowFiles, JsonLines, ParquetFiles, TarArchives, TextFiles
from pretrain.corpus.sources.hub import HubDataset
from pretrain.corpus.sources.stdlib import PythonStandardLibrary

Source = Annotated[
    PythonStandardLibrary | TextFiles | JsonLines | ParquetFiles | ArrowFiles | TarArchives | HubDataset,
    Field(discriminator="kind"),
]
