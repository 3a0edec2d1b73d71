"""A model's own source as files beside its weights, from which transformers can load it without this package."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

SOURCE = Path(__file__).parents[2]


def auto_map(classes: Mapping[str, type]) -> dict[str, str]:
    """`auto_map` of a JSON file: for each Auto class, the file and the class to use with ``trust_remote_code=True``."""
    return {auto: f"{_flat_name(kind.__module__)}.{kind.__name__}" for auto, kind in classes.items()}


def remote_code(classes: Iterable[type]) -> dict[str, str]:
    """File name -> source of all modules that `classes` need, in one flat folder, importing each other relatively."""
    files: dict[str, str] = {}
    waiting = [kind.__module__ for kind in classes]
    while waiting:
        module = waiting.pop()
        file = f"{_flat_name(module)}.py"
        if file not in files:
            path = f"{module.replace('.', '/')}.py"
            source, imported = _flatten((SOURCE / path).read_text())
            files[file] = f"# {path} of perceiver-ar, Apache-2.0; only its imports are others.\n{source}"
            waiting += imported
    return files


def _flatten(source: str) -> tuple[str, list[str]]:
    """A module's source with relative imports, and the modules of this package that it imports."""
    lines = source.splitlines(keepends=True)
    imported = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("perceiver_ar."):
            line = node.lineno - 1
            lines[line] = lines[line].replace(f"from {node.module} ", f"from .{_flat_name(node.module)} ", 1)
            imported.append(node.module)
    return "".join(lines), imported


def _flat_name(module: str) -> str:
    """``perceiver_ar.models.cache`` -> ``models_cache``: transformers finds no files in subfolders."""
    return "_".join(module.split(".")[1:])
