"""Settings files (prompts, mixes): YAML or JSON, read strictly and checked by schema; each fault is one line."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from cxrclip.errors import InputError, one_line

MAX_VALUES = 100_000  # the library's own prompts have some 2,000
T = TypeVar("T")


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML as usual, except that a key written twice is an error, not a silent loss of the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """PyYAML's own name for the step from a mapping in the file to a dict."""
        written = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]  # super() puts its keys here
        mapping = super().construct_mapping(node, deep)  # first: it refuses keys that are lists
        _unique([(self.construct_object(key, deep=True), None) for key in written],
                f"line {node.start_mark.line + 1}: ")
        return mapping


def _unique(pairs: list[tuple[Hashable, Any]], line: str = "") -> dict[Hashable, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        raise InputError(f"{line}{next(key for key in keys if keys.count(key) > 1)!r} is given twice; keep one")
    return mapping


def _refuse_endless(content: object, sizes: dict[int, float]) -> float:
    """How many values `content` has when its aliases are written out: a few lines of them would fill any memory.

    sizes: by identity, of the lists and mappings that were counted; those that are being counted are endless.
    """
    if not isinstance(content, dict | list):
        return 1
    if id(content) not in sizes:
        sizes[id(content)] = math.inf
        values = content.values() if isinstance(content, dict) else content
        sizes[id(content)] = 1 + sum(_refuse_endless(value, sizes) for value in values)
    if sizes[id(content)] > MAX_VALUES:
        raise InputError(f"its aliases (*name) stand for more than {MAX_VALUES:,} values; write out what is meant")
    return sizes[id(content)]


def read_settings(path: str | Path) -> dict[str, Any]:
    """The content of a YAML file, or of a JSON file (its name ends in .json): `name: value` lines, each name once.

    Raises:
        InputError: names the file; it cannot be read, is malformed, holds no such lines, or a name twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            content = json.loads(text, object_pairs_hook=_unique)
        else:
            content = yaml.load(text, Loader=_UniqueKeyLoader)
            _refuse_endless(content, {})
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (ValueError, yaml.YAMLError) as error:  # not UTF-8, not JSON, not YAML
        raise InputError(f"{path}: malformed: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: `name: value` lines are needed here, found {content!r:.60}")
    return content


def checked(kind: type[T], value: object, where: object) -> T:
    """`value` as `kind`, a pydantic model or type. Raises InputError: one line that begins with `where`."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise InputError(one_line(error, where, getattr(kind, "__pydantic_fields__", ()))) from error
