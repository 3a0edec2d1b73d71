"""Configurations from what JSON holds: nested objects become the dataclasses, and lists the tuples, of their fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

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
        value = tuple(value)
    if not _fits(hint, value):
        raise ValueError(f"{name} cannot be {value!r}")
    nested: Any = next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)
    if nested is None or not isinstance(value, Mapping):
        return value
    try:
        return from_json(nested, value)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _fits(hint: Any, value: Any) -> bool:
    """Whether `value` is of the type `hint`, where a mapping may stand for a dataclass."""
    kind, arguments = get_origin(hint), get_args(hint)
    if kind is UnionType:
        return any(_fits(argument, value) for argument in arguments)
    if kind is Literal:
        return value in arguments
    if kind is tuple:
        if not isinstance(value, tuple):
            return False
        elements = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        return len(value) == len(elements) and all(map(_fits, elements, value))
    if is_dataclass(hint):
        return isinstance(value, Mapping | hint)
    if hint is float:
        hint = (int, float)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
