"""oneOf as anyOf: branches that no value can satisfy two of.

Owns the proofs that two schemas exclude each other, and how a branch is narrowed until they do: a
property that another branch requires, and this one does not, it does not have; a value that both
list, neither has. What satisfies the narrowed branches satisfies oneOf. Where nothing is proved the
schema stays as it is, for the grammar's compiler to accept or to refuse.

    oneOf: requires a | requires b     ->     anyOf: a and no b | b and no a
"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from cluster.text.schema_parts import rewritten

MAX_BRANCHES = 16
MAX_PROOFS = 500
"""In one schema; each takes some microseconds of an ingress that has streams to serve."""
_MAX_HOPS = 8
_MAX_DEPTH = 3

_ALL_KINDS = frozenset({"array", "boolean", "null", "number", "object", "string"})
_COUNTED = {
    "array": ("minItems", "maxItems"),
    "string": ("minLength", "maxLength"),
    "object": ("minProperties", "maxProperties"),
}


def exclusive(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with anyOf in place of every oneOf whose branches can be told apart."""
    return dict(rewritten(dict(schema), _Branches(schema).told_apart))


class _Branches:
    """Tells branches apart within one schema, with so many proofs and no more."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._left = MAX_PROOFS

    def told_apart(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The schema itself, not those within it."""
        branches = schema.get("oneOf")
        if not isinstance(branches, list) or not 0 < len(branches) <= MAX_BRANCHES:
            return schema
        if "anyOf" in schema or not all(isinstance(branch, dict) for branch in branches):
            return schema
        rest = {name: value for name, value in schema.items() if name != "oneOf"}
        kinds = self._kinds(rest)
        narrowed = list(self._narrowed(branches, kinds))
        if not narrowed or None in narrowed:
            return schema
        return rest | {"anyOf": narrowed}

    def _narrowed(
        self, branches: Sequence[dict[str, Any]], kinds: frozenset[str]
    ) -> Iterator[dict[str, Any] | None]:
        """Each branch that has values left; None for one that cannot be told from another."""
        for place, branch in enumerate(branches):
            own: dict[str, Any] | None = branch
            for other in (*branches[:place], *branches[place + 1 :]):
                own = own and self._without(own, branch, other, kinds)
            if own != {"enum": []}:
                yield own or None

    def _without(
        self, own: dict[str, Any], branch: Any, other: Any, kinds: frozenset[str]
    ) -> dict[str, Any] | None:
        """`own`, a narrowed `branch`, less what satisfies `other`; None if that cannot be had."""
        self._left -= 1
        if self._left < 0:
            return None
        if self._excluded(branch, other, kinds):
            return own
        mine, theirs = self._target(branch), self._target(other)
        values, taken = _values(mine), _values(theirs)
        if values is not None and taken is not None:
            keys = set(map(_key, taken))
            left = [value for value in own.get("enum", values) if _key(value) not in keys]
            return own | {"enum": left} if left else {"enum": []}
        if self._shared(mine, theirs, kinds) != {"object"}:
            return None
        return _forbidding(own, mine, theirs)

    def _excluded(
        self, one: Any, other: Any, kinds: frozenset[str] = _ALL_KINDS, depth: int = 0
    ) -> bool:
        """Whether it is plain that no value of these kinds satisfies both."""
        mine, theirs = self._target(one), self._target(other)
        values, taken = _values(mine), _values(theirs)
        if values is not None and taken is not None:
            return set(map(_key, values)).isdisjoint(map(_key, taken))
        shared = self._shared(mine, theirs, kinds)
        return all(self._apart(kind, mine, theirs, depth) for kind in shared)

    def _shared(self, mine: Any, theirs: Any, kinds: frozenset[str]) -> frozenset[str]:
        return kinds & self._kinds(mine) & self._kinds(theirs)

    def _apart(self, kind: str, mine: Any, theirs: Any, depth: int) -> bool:
        if kind == "number":
            return _is_below(mine, theirs) or _is_below(theirs, mine)
        if kind in _COUNTED and _counts_differ(_COUNTED[kind], mine, theirs):
            return True
        return (
            kind == "object" and depth < _MAX_DEPTH and self._properties_differ(mine, theirs, depth)
        )

    def _properties_differ(self, mine: Any, theirs: Any, depth: int) -> bool:
        """A property that one must have and the other cannot, or cannot have so."""
        for one, other in ((mine, theirs), (theirs, mine)):
            properties, others = _properties(one), _properties(other)
            needed = _required(one)
            if _is_closed(other) and needed - others.keys():
                return True
            for name in needed & others.keys():
                if self._excluded(properties.get(name, {}), others[name], depth=depth + 1):
                    return True
        return False

    def _kinds(self, schema: Any, depth: int = 0) -> frozenset[str]:
        """The JSON types that values of the schema may have."""
        schema = self._target(schema)
        if not isinstance(schema, dict) or depth > _MAX_DEPTH:
            return _ALL_KINDS
        kinds = _ALL_KINDS
        if (values := _values(schema)) is not None:
            kinds &= frozenset(_kind(value) for value in values)
        named = schema.get("type")
        if isinstance(named, str | list):
            names = {named} if isinstance(named, str) else {one for one in named if _is_text(one)}
            kinds &= {"number" if name == "integer" else name for name in names}
        for branches in (schema.get("anyOf"), schema.get("oneOf")):
            if isinstance(branches, list) and branches:
                of_each = [self._kinds(branch, depth + 1) for branch in branches]
                kinds &= frozenset().union(*of_each)
        return kinds

    def _target(self, schema: Any) -> Any:
        """What a reference refers to. Beside it more may stand, which only narrows it."""
        for _ in range(_MAX_HOPS):
            if not isinstance(schema, dict) or not isinstance(ref := schema.get("$ref"), str):
                return schema
            schema = self._root if ref == "#" else self._at(ref)
        return {}

    def _at(self, ref: str) -> Any:
        place: Any = self._root if ref.startswith("#/") else {}
        for step in unquote(ref[2:]).split("/"):
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(place, list) and name.isdecimal() and int(name) < len(place):
                place = place[int(name)]
            else:
                place = place.get(name, {}) if isinstance(place, dict) else {}
        return place


def _forbidding(own: dict[str, Any], mine: Any, theirs: Any) -> dict[str, Any] | None:
    """`own` without a property that the other branch requires; rather one that it does not name."""
    needed = _required(theirs) - _required(mine)
    if not needed:
        return None
    name = min(needed, key=lambda name: (name in _properties(mine), name))
    properties = own.get("properties")
    named = properties if isinstance(properties, dict) else {}
    return own | {"properties": {**named, name: False}}


def _required(schema: Any) -> frozenset[str]:
    names = schema.get("required") if isinstance(schema, dict) else None
    return frozenset(filter(_is_text, names)) if isinstance(names, list) else frozenset()


def _properties(schema: Any) -> dict[str, Any]:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return properties if isinstance(properties, dict) else {}


def _is_closed(schema: Any) -> bool:
    return (
        isinstance(schema, dict)
        and schema.get("additionalProperties") is False
        and "patternProperties" not in schema
    )


def _values(schema: Any) -> list[Any] | None:
    """All values that the schema lists; None if it lists none."""
    if not isinstance(schema, dict):
        return None
    if "const" in schema:
        return [schema["const"]]
    listed = schema.get("enum")
    return listed if isinstance(listed, list) else None


def _is_below(low: Any, high: Any) -> bool:
    """Whether all numbers of the first are less than all numbers of the second."""
    most, least = _bound(low, "maximum"), _bound(high, "minimum")
    below, above = _bound(low, "exclusiveMaximum"), _bound(high, "exclusiveMinimum")
    return (
        (most is not None and least is not None and most < least)
        or (below is not None and least is not None and below <= least)
        or (most is not None and above is not None and most <= above)
        or (below is not None and above is not None and below <= above)
    )


def _counts_differ(names: tuple[str, str], mine: Any, theirs: Any) -> bool:
    least, most = names
    for one, other in ((mine, theirs), (theirs, mine)):
        high, low = _bound(one, most), _bound(other, least)
        if high is not None and low is not None and high < low:
            return True
    return False


def _bound(schema: Any, name: str) -> int | float | None:
    value = schema.get(name) if isinstance(schema, dict) else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    kinds = {int: "number", float: "number", str: "string", list: "array"}
    return kinds.get(type(value), "object")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _key(value: Any) -> Hashable:
    """Equal for what is equal as JSON: 1 is 1.0 and is not true."""
    if isinstance(value, list):
        return ("array", *map(_key, value))
    if isinstance(value, dict):
        return ("object", frozenset((name, _key(one)) for name, one in value.items()))
    return (_kind(value), value)
