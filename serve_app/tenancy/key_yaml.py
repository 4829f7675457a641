"""A book of keys as YAML: what `configs/tenants.yaml` shows.

Owns the form of the file and that a mistake in it is told by line and field. Comments are not kept
when a book is written again. JSON is YAML: a book in JSON is read as well.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import yaml

from serve_app.tenancy.keys import ApiKey, KeyBook, Tenant, check_tenant

HEAD = (
    "# Tenants and API keys, by digest: no secret is in here. Commands and the admin API write\n"
    "# this file as a whole, so comments are lost. Raise `version` with every edit by hand.\n"
)
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where there is one
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_Path = tuple[str | int, ...]


class BookError(ValueError):
    """Not a book of keys; the message begins with the line."""


def read_book(text: str) -> KeyBook:
    """Raises BookError."""
    try:
        loader = _LOADER(text)
        root = loader.get_single_node()
        _refuse_doubles(root)
        value = {} if root is None else loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BookError(f"line {line}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise BookError(f"line 1: {error}") from None
    try:
        book = msgspec.convert(value, KeyBook)
    except msgspec.ValidationError as error:
        raise _located(root, *_mistake(value, error)) from None
    for path, problem in _contradictions(book):
        raise _located(root, path, problem)
    return book


def write_book(book: KeyBook) -> str:
    """What `read_book` reads."""
    values = msgspec.to_builtins(book)
    return HEAD + yaml.dump(values, Dumper=_DUMPER, sort_keys=False, allow_unicode=True)


def _refuse_doubles(node: Any) -> None:
    """YAML lets a name stand twice; the first would be lost in silence."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for name, value in node.value:
            if name.value in seen:
                problem = f"{name.value} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=name.start_mark)
            seen.add(name.value)
            _refuse_doubles(value)
    elif isinstance(node, yaml.SequenceNode):
        for one in node.value:
            _refuse_doubles(one)


def _mistake(value: Any, error: msgspec.ValidationError) -> tuple[_Path, str]:
    """Where it is: msgspec names fields and places in lists, but not the names in a mapping."""
    if isinstance(value, dict):
        tenants, keys = value.get("tenants"), value.get("keys")
        parts: list[tuple[_Path, Any, Any]] = []
        if isinstance(tenants, dict):
            parts += [(("tenants", str(name)), part, Tenant) for name, part in tenants.items()]
        if isinstance(keys, list):
            parts += [(("keys", place), part, ApiKey) for place, part in enumerate(keys)]
        for path, part, kind in parts:
            try:
                msgspec.convert(part, kind)
            except msgspec.ValidationError as found:
                return (*path, *_path(found)), _problem(found)
    return _path(error), _problem(error)


def _path(error: msgspec.ValidationError) -> _Path:
    _, _, path = str(error).partition(" - at `$")
    return tuple(int(part) if part.isdigit() else part for part in re.findall(r"\w+", path))


def _problem(error: msgspec.ValidationError) -> str:
    return str(error).partition(" - at ")[0].replace("`", "")


def _contradictions(book: KeyBook) -> Iterator[tuple[_Path, str]]:
    for name in book.tenants:
        try:
            check_tenant(name)
        except ValueError as error:
            yield ("tenants", name), str(error)
    ids: set[str] = set()
    digests: set[str] = set()
    for place, key in enumerate(book.keys):
        if key.id in ids:
            yield ("keys", place, "id"), "another key has this id"
        if key.digest in digests:
            yield ("keys", place, "digest"), "another key has this digest"
        ids.add(key.id)
        digests.add(key.digest)


def _located(root: Any, path: _Path, problem: str) -> BookError:
    """The error with the line of the last part of `path` that is there, or of a field that the
    problem names."""
    line, node = root.start_mark.line + 1 if root is not None else 1, root
    named = re.findall(r"\w+", problem)
    for part in path:
        line, node = _inside(node, (part,)) or (line, None)
    line, _ = _inside(node, named) or (line, None)
    where = ".".join(str(part) for part in path)
    return BookError(f"line {line}: {where}: {problem}" if where else f"line {line}: {problem}")


def _inside(node: Any, parts: Any) -> tuple[int, Any] | None:
    """Line and node of the first of `parts` that a node has."""
    if isinstance(node, yaml.SequenceNode):
        places: dict[Any, Any] = {place: (one, one) for place, one in enumerate(node.value)}
    elif isinstance(node, yaml.MappingNode):
        places = {name.value: (name, value) for name, value in node.value}
    else:
        return None
    for part in parts:
        if part in places:
            name, value = places[part]
            return name.start_mark.line + 1, value
    return None
