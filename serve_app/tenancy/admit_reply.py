"""What ADMIT says of a request that it does not let in now: a place in the queue, or a refusal.

Owns the order of its answers' values, which is that of scripts/admit.lua. Decides nothing.
"""

from typing import Any

import msgspec

from serve_app.tenancy.limiter import read_figures
from serve_app.tenancy.refusals import (
    CostAboveBurst,
    Figures,
    NoReplica,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    Refusal,
    Unauthorized,
)


class QueuePlace(msgspec.Struct, frozen=True):
    """Where a waiter stands."""

    position: int
    """1 is next; an upper bound while several tenants wait."""
    eta_s: float | None
    """Predicted wait; None while nothing is known."""
    service_class: str = ""
    figures: Figures = Figures()
    """The limits with it waiting. They and its class are told at its arrival."""


def read_refusal(reply: list[Any]) -> Refusal:
    """The refusal that ADMIT answered with."""
    match reply:
        case ["auth", reason]:
            return Unauthorized(reason)
        case ["burst", limit, scope, cost, most]:
            return CostAboveBurst(limit, _scope(scope), cost, most)
        case ["limit", limit, scope, wait_us, *figures]:
            return RateLimited(limit, _scope(scope), wait_us / 1e6, read_figures(figures))
        case ["quota", period, scope, unit, cost, budget, spent, *figures]:
            return QuotaExhausted(
                period,
                _scope(scope),
                unit=unit,
                cost=cost,
                budget=budget,
                spent=spent,
                figures=read_figures(figures),
            )
        case ["full", wait_ms, *figures]:
            return Overloaded(wait_ms / 1000, read_figures(figures))
        case ["none", wait_ms, *figures]:
            return NoReplica(wait_ms / 1000, read_figures(figures))
    raise AssertionError(f"ADMIT said {reply[0]}")


def read_place(position: int, eta_ms: int) -> QueuePlace:
    """From PLACE."""
    return QueuePlace(position, eta_ms / 1000 if eta_ms >= 0 else None)


def place_at_arrival(reply: list[Any]) -> QueuePlace:
    """From ADMIT."""
    place = read_place(reply[1], reply[2])
    told = {"service_class": reply[8], "figures": read_figures(reply[9:])}
    return msgspec.structs.replace(place, **told)


def _scope(kind: str) -> str:
    return "key" if kind == "k" else "tenant"
