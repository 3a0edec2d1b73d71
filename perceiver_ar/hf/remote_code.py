"""The model's own source as files beside its weights, from which transformers can load it without this package."""

from __future__ import annotations

import ast
from pathlib import Path

SOURCE = Path(__file__).parents[2]
MODEL = "perceiver_ar.hf.modeling"

AUTO_MAP = {
    "AutoConfig": "hf_configuration.PerceiverARHFConfig",
    "AutoModel": "hf_modeling.PerceiverARModel",
    "AutoModelForCausalLM": "hf_modeling.PerceiverARForCausalLM",
}
"""`auto_map` of ``config.json``: the files and classes to use with ``trust_remote_code=True``."""


def remote_code() -> dict[str, str]:
    """File name -> source of all modules that the model needs, in one flat folder, importing each other relatively."""
    files: dict[str, str] = {}
    waiting = [MODEL]
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
