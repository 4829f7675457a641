"""The settings of keys and tenants as options of commands.

Owns their names on the command line and their help. What they mean and their bounds are
`serve_app.tenancy`'s; the options are told once and shared by all commands that set them.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import typer

from serve_app.commands.values import moment, money

_Class = Literal["system", "interactive", "default", "batch"]


def _limit(what: str) -> Any:
    return Annotated[int | None, typer.Option(min=0, help=f"{what}; 0: no limit.")]


def _money(what: str) -> Any:
    words = f"{what}, such as 12.50; 0: no limit."
    return Annotated[int | None, typer.Option(parser=money, metavar="AMOUNT", help=words)]


_CLASS = Annotated[_Class | None, typer.Option(help="The highest class of its requests.")]
LIMITS: Mapping[str, Any] = {
    "rpm": _limit("Requests per minute"),
    "tpm": _limit("Tokens per minute, input and output"),
    "itpm": _limit("Input tokens per minute"),
    "otpm": _limit("Output tokens per minute"),
    "concurrency": _limit("Requests at a time, waiting ones included"),
    "burst_s": Annotated[
        int | None, typer.Option("--burst", min=1, help="Seconds' worth of a rate at once.")
    ],
    "tokens_per_day": _limit("Budget of tokens of a day (UTC)"),
    "tokens_per_month": _limit("Budget of tokens of a month (UTC)"),
    "money_per_day": _money("Budget of a day (UTC) in the currency of the prices"),
    "money_per_month": _money("Budget of a month (UTC)"),
}
TENANT: Mapping[str, Any] = {
    "weight": Annotated[
        int | None, typer.Option(min=1, max=100, help="Its share of a full queue.")
    ],
    "max_class": _CLASS,
    **LIMITS,
}
KEY: Mapping[str, Any] = {
    **LIMITS,
    "label": Annotated[str | None, typer.Option(help="A note for people.")],
    "scopes": Annotated[
        list[str] | None,
        typer.Option(
            "--scope",
            metavar="[inference|usage|admin]",
            help="What it is good for; may be repeated. Unless told: inference and usage.",
        ),
    ],
    "models": Annotated[
        list[str] | None,
        typer.Option("--model", help="A model it may ask for; may be repeated. '': all."),
    ],
    "max_class": _CLASS,
    "expires_at": Annotated[
        int | None,
        typer.Option("--expires", parser=moment, metavar="WHEN", help="30d, 2027-01-31, or never."),
    ],
    "reasoning_format": Annotated[
        Literal["think_tags", "split", "hidden"] | None,
        typer.Option(help="How thoughts are shown where a request does not say."),
    ],
    "answer_reserve": Annotated[
        bool | None,
        typer.Option(help="Keep tokens for the answer where a request does not say."),
    ],
}


def with_settings(options: Mapping[str, Any]) -> Callable[[Callable[..., None]], Any]:
    """Adds `options` to a command; it is given those that were typed as `settings`."""

    def decorate(command: Callable[..., None]) -> Any:
        @functools.wraps(command)
        def typed(**given: Any) -> None:
            values = {name: given.pop(name) for name in options}
            settings = {name: value for name, value in values.items() if value not in (None, [])}
            command(settings=settings, **given)

        own = inspect.signature(command, eval_str=True).parameters.values()
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for name, kind in options.items()
        ]
        parameters = [*(one for one in own if one.name != "settings"), *added]
        typed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        typed.__annotations__ = {one.name: one.annotation for one in parameters}
        return typed

    return decorate
