"""Read sources in a process of its own, as JSON: ``{name: source, ...}`` in, ``{name: what it holds, ...}`` out."""

import json
import sys
from typing import Any

from pretrain.corpus.sources import Source
from pretrain.corpus.sources.unit import SourceReader
from pretrain.errors import InputError
from pretrain.schema import Section, validate


class Sources(Section):
    sources: list[Source]


def contents(source: SourceReader) -> dict[str, Any]:
    units = source.units()
    documents = [[(document.id, document.text.decode()) for document in source.documents(unit)] for unit in units]
    files = [[file.id for file in unit.files] for unit in units]
    return {
        "state": source.state,
        "files": files,
        "bytes": [unit.bytes for unit in units],
        "documents": documents,
    }


def read(source: dict[str, Any]) -> dict[str, Any]:
    try:
        return contents(validate(Sources, {"sources": [source]}).sources[0])
    except InputError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    print(json.dumps({name: read(source) for name, source in json.load(sys.stdin).items()}))
