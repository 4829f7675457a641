"""Tenants as typed."""

import json
from typing import Any

from tests.serve_app.typed import Command


def listed(typed: Command) -> dict[str, Any]:
    rows = json.loads(typed("tenants", "list", "--json").stdout)["tenants"]
    return {row["name"]: row for row in rows}


def test_a_tenant_is_set_in_part_and_listed_with_those_that_only_have_keys(typed: Command) -> None:
    typed("keys", "create", "--tenant", "acme")
    assert typed("tenants", "set", "bolt", "--weight", "3", "--rpm", "60").exit_code == 0
    result = typed("tenants", "set", "bolt", "--max-class", "batch", "--json")
    assert json.loads(result.stdout) == listed(typed)["bolt"]
    rows = listed(typed)
    assert list(rows) == ["acme", "bolt"]
    assert (rows["acme"]["weight"], rows["acme"]["active_keys"]) == (1, 1)
    bolt = rows["bolt"]
    assert (bolt["weight"], bolt["rpm"], bolt["max_class"]) == (3, 60, "batch")
    table = typed("tenants", "list").stdout
    assert "bolt" in table
    assert "batch" in table


def test_a_mistake_is_an_error_line(typed: Command) -> None:
    for words in (("a b", "--weight", "2"), ("acme", "--rpm", "1", "--burst", "1")):
        result = typed("tenants", "set", *words)
        assert (result.exit_code, result.stdout) == (1, "")
    assert typed("tenants", "set", "acme", "--weight", "0").exit_code == 2
    assert listed(typed) == {}
