"""From a YAML file and `key.sub=value` overrides to a checked value, or to one line that lists all problems.

Plain scalars follow YAML 1.2: ``1e-3`` is a number and ``yes`` is text, where PyYAML's YAML 1.1 says the opposite.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from pretrain.errors import InputError


class Section(BaseModel):
    """A group of keys in a YAML file: unknown ones are refused, values are final."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


def _check_path(value: Any) -> Any:
    if isinstance(value, str):
        if not value or "\0" in value:
            raise ValueError(f"must be a path, not {_show(value)}")
        if value.startswith("~/"):  # no shell has seen a path in a file or behind `key=`
            return str(Path.home() / value[2:])
    return value


FilePath = Annotated[Path, BeforeValidator(_check_path)]
Location = Annotated[str, BeforeValidator(_check_path)]
"""A local path, or the URL of a file system that fsspec knows (``s3://``, ``hf://``, ``https://``, ...)."""

SchemaT = TypeVar("SchemaT", bound=BaseModel)

_RESOLVERS = {
    None: [
        ("tag:yaml.org,2002:null", re.compile(r"^(?:null|~|)$")),
        ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$")),
        ("tag:yaml.org,2002:int", re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$")),
        (
            "tag:yaml.org,2002:float",
            re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"),
        ),
    ]
}
_TAGS = [*(f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")), None]


class _Loader(yaml.SafeLoader):
    """Reads what JSON could hold, and no more."""

    yaml_implicit_resolvers = _RESOLVERS
    yaml_constructors: ClassVar = {tag: yaml.SafeLoader.yaml_constructors[tag] for tag in _TAGS}

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not supported", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="keys must be plain text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"key {key.value!r} appears twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)

    def construct_yaml_float(self, node: Any) -> float:
        if not math.isfinite(value := super().construct_yaml_float(node)):
            raise yaml.MarkedYAMLError(problem=f"{node.value} is too large", problem_mark=node.start_mark)
        return value


_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)


class _Dumper(yaml.SafeDumper):
    """Quotes exactly the text that `_Loader` would not read back as text."""

    yaml_implicit_resolvers = _RESOLVERS


def load_yaml(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML file with each override ``key.sub=value`` (value in YAML) put in its place.

    Raises:
        InputError: The file is missing, empty, not YAML, no mapping or has a key twice, or an override is malformed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; --config must name a YAML file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; --config must name a YAML file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: is not a YAML file (not UTF-8 text)") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from None
    data = _parse(text, source=str(path))
    if data is None:
        raise InputError(f"{path}: is empty; it must hold `key: value` lines")
    if not isinstance(data, dict):
        raise InputError(f"{path}: must hold `key: value` lines, not {_show(data)}")
    return override(data, overrides)


def override(data: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`data`, with each ``key.sub=value`` (value in YAML) put in its place.

    Raises InputError where one is malformed.
    """
    for each in overrides:
        _apply(data, each)
    return data


def dump_yaml(data: dict[str, Any]) -> str:
    """YAML text that `load_yaml` reads back as `data`."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)


def validate(schema: type[SchemaT], data: dict[str, Any]) -> SchemaT:
    """`data` as a value of `schema`, converting nothing but whole numbers to floats.

    Raises:
        InputError: One line with every problem: the dotted field, the value given and what would be right.
    """
    try:
        # JSON mode is the strict mode that still takes text for a path and a list for a tuple.
        return schema.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        problems = [problem for entry in error.errors() for problem in _problems(schema, entry)]
        raise InputError("; ".join(problems)) from None


def resolve_preset(value: Any, presets: Mapping[str, Mapping[str, Any]]) -> Any:
    """A group of keys with a key `preset`: the values of that preset, under the group's own, at every depth.

    Raises ValueError where there is no such preset.
    """
    if not isinstance(value, dict) or "preset" not in value:
        return _with_tuples(value)
    own = {name: given for name, given in value.items() if name != "preset"}
    if (preset := value["preset"]) not in list(presets):
        raise ValueError(f"preset must be one of {', '.join(presets)}, not {preset!r}")
    return _with_tuples(merged(presets[preset], own))


def _with_tuples(value: Any) -> Any:
    """What a validator has touched is no JSON any more: pydantic then refuses lists where a schema has tuples."""
    if isinstance(value, Mapping):
        return {name: _with_tuples(inner) for name, inner in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both, at every depth; where both have a value, that of `over`."""
    both = {name: (under[name], over[name]) for name in under.keys() & over.keys()}
    nested = {name: merged(*pair) for name, pair in both.items() if all(isinstance(part, Mapping) for part in pair)}
    return {**under, **over, **nested}


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark and "\n" in text else ""
        raise InputError(f"{source}: {line}{error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{source}: is not YAML ({str(error).splitlines()[0]})") from None


def _apply(data: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    parts = name.split(".")
    if not equals or not all(part.isidentifier() for part in parts):
        raise InputError(f"override {override!r}: must be key.sub=value, for example train.steps=1000")
    value = _parse(text, source=f"override {override!r}")
    for depth, part in enumerate(parts[:-1], start=1):
        if data.get(part) is None:
            data[part] = {}
        data = data[part]
        if not isinstance(data, dict):
            raise InputError(f"override {override!r}: {'.'.join(parts[:depth])} is {_show(data)}, not a group of keys")
    data[parts[-1]] = value


_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "model_type": "a group of keys",
    "dataclass_type": "a group of keys",
    "dict_type": "a group of keys",
    "list_type": "a list",
    "tuple_type": "a list",
    "literal_error": "{expected}",
    "greater_than": "greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
    "string_too_short": "text of at least {min_length} characters",
    "too_short": "a list of at least {min_length} values",
    "too_long": "a list of at most {max_length} values",
}
"""What would have been right, by pydantic's error type."""


def _problems(schema: type[BaseModel], entry: Any) -> Iterator[str]:
    loc, kind, context = entry["loc"], entry["type"], entry.get("ctx", {})
    name = _name(schema, loc)
    if kind.startswith("union_tag"):
        tag = f"{name}.{context['discriminator']}".replace("'", "")
        if kind == "union_tag_invalid":
            yield f"{tag}: must be one of {context['expected_tags']}, not {_show(context['tag'])}"
        else:
            yield f"{tag}: is missing, it has no default"
    elif kind in ("extra_forbidden", "unexpected_keyword_argument"):
        yield f"{name}: unknown key, {_suggest(schema, loc)}"
    elif kind == "missing":
        yield f"{name}: is missing, it has no default"
    elif kind in _WANTED:
        annotation = _fields(_annotation(schema, loc[:-1])).get(str(loc[-1]))
        null = " or null" if type(None) in get_args(annotation) else ""
        yield f"{name}: must be {_WANTED[kind].format(**context)}{null}, not {_show(entry['input'])}"
    elif kind == "value_error":
        # A dataclass joins its problems with "; " and begins each with the field at fault.
        for problem in str(context["error"]).split("; "):
            inner = problem.split()[0] in _fields(_annotation(schema, loc))
            yield f"{name}.{problem}" if inner else f"{name}: {problem}"
    else:
        yield f"{name}: {entry['msg']}, not {_show(entry['input'])}"


def _suggest(schema: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    key = str(loc[-1])
    here = _fields(_annotation(schema, loc[:-1]))
    if close := get_close_matches(key, here, n=1):
        return f"did you mean {_name(schema, (*loc[:-1], close[0]))}?"
    anywhere = {name.rpartition(".")[2]: name for name in _dotted_names(schema)}
    if close := get_close_matches(key, anywhere, n=1, cutoff=0.8):
        return f"did you mean {anywhere[close[0]]}? Known here are {', '.join(here)}"
    return f"known are {', '.join(here)}"


def _fields(annotation: Any) -> dict[str, Any]:
    """Name -> annotation of the fields of the groups that `annotation` (a schema, a list of schemas, ...) holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {name: field.annotation for name, field in annotation.model_fields.items()}
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        hints = get_type_hints(annotation)
        return {field.name: hints[field.name] for field in dataclasses.fields(annotation)}
    return {name: inner for part in get_args(annotation) for name, inner in _fields(part).items()}


def _name(schema: Any, loc: Sequence[int | str]) -> str:
    """Dotted name of a place in the YAML file; pydantic's `loc` also names the chosen alternatives of unions."""
    parts = []
    for number, part in enumerate(loc, start=1):
        mapped = _mapped(schema)
        if isinstance(part, int) or number == len(loc) or mapped is not None or part in _fields(schema):
            parts.append(str(part))
        schema = _fields(schema).get(str(part), schema) if mapped is None else mapped
    return ".".join(parts)


def _mapped(annotation: Any) -> Any:
    """What a mapping by free names holds; None if `annotation` is no mapping, nor optionally one."""
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return next((found for part in get_args(annotation) if (found := _mapped(part)) is not None), None)
    return None


def _annotation(schema: Any, loc: Sequence[int | str]) -> Any:
    for part in loc:
        schema = _fields(schema).get(str(part), schema)  # a list's index stays within the same annotation
    return schema


def _dotted_names(schema: Any, prefix: str = "") -> Iterator[str]:
    for name, annotation in _fields(schema).items():
        yield prefix + name
        yield from _dotted_names(annotation, f"{prefix}{name}.")


def _show(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
