"""Configurations from what JSON holds: nested objects become the dataclasses, and lists the tuples, of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, TypeVar, get_args, get_type_hints

T = TypeVar("T")


def from_json(kind: type[T], values: Mapping[str, Any]) -> T:
    """The `kind`, a dataclass, with these values of its fields.

    Raises:
        ValueError: a field is missing or unknown, or the values make no `kind`.
    """
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    required = {name for name, field in known.items() if field.default is field.default_factory is MISSING}
    if missing := sorted(required - values.keys()):
        raise ValueError(f"{', '.join(missing)}: missing")
    if unknown := sorted(values.keys() - known.keys()):
        raise ValueError(f"{', '.join(unknown)}: no field of {kind.__name__}")
    hints = get_type_hints(kind)
    return kind(**{name: _value(name, hints[name], value) for name, value in values.items()})


def _value(name: str, hint: Any, value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_value(name, None, element) for element in value)
    nested: Any = next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)
    if nested is None or not isinstance(value, Mapping):
        return value
    try:
        return from_json(nested, value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
