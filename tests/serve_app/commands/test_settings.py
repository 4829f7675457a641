from typing import Any

import pytest
import typer
from msgspec.structs import fields
from typer.testing import CliRunner

from serve_app.commands.settings import KEY, TENANT, with_settings
from serve_app.tenancy.key_settings import KEY_SETTINGS, TENANT_SETTINGS
from serve_app.tenancy.limiter import Limits


def test_every_setting_of_the_records_is_an_option() -> None:
    assert set(KEY) == set(KEY_SETTINGS)
    assert set(TENANT) == set(TENANT_SETTINGS)
    assert {field.name for field in fields(Limits)} <= set(TENANT)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {}),
        (["--rpm", "0"], {"rpm": 0}),
        (["--burst", "5", "--label", ""], {"burst_s": 5, "label": ""}),
        (["--scope", "usage", "--scope", "admin"], {"scopes": ["usage", "admin"]}),
        (["--no-answer-reserve"], {"answer_reserve": False}),
        (["--money-per-month", "0.5"], {"money_per_month": 500_000}),
    ],
)
def test_a_command_is_given_what_was_typed_and_nothing_else(
    words: list[str], expected: dict[str, Any]
) -> None:
    app, given = typer.Typer(), []

    @app.command()
    @with_settings(KEY)
    def command(name: str, settings: Any) -> None:
        given.append((name, dict(settings)))

    assert CliRunner().invoke(app, ["x", *words]).exit_code == 0
    assert given == [("x", expected)]
