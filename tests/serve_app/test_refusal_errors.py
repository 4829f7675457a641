"""Every refusal of admission has its status, and keeps its own words and headers."""

import pytest

from serve_app.refusal_errors import api_error
from serve_app.tenancy.refusals import (
    CostAboveBurst,
    Figure,
    Figures,
    NoReplica,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    Refusal,
    Stopped,
    StoreUnavailable,
    Unauthorized,
)
from serve_app.tenancy.replies import NameReused, ReplyNotKept, StillRunning

FIGURES = Figures(requests=Figure(5, 0, 12.0))
QUOTA = QuotaExhausted("day", "key", unit="tokens", cost=10, budget=100, spent=95, figures=FIGURES)


@pytest.mark.parametrize(
    ("refusal", "status"),
    [
        (Unauthorized("revoked"), 401),
        (CostAboveBurst("tpm", "key", 500, 100), 400),
        (RateLimited("rpm", "key", 12.0, FIGURES), 429),
        (QUOTA, 429),
        (Overloaded(3.0), 429),
        (NoReplica(3.0), 503),
        (StoreUnavailable("timeout"), 503),
        (Stopped(), 409),
        (StillRunning(2.0), 409),
        (ReplyNotKept(), 409),
        (NameReused(), 422),
    ],
)
def test_each_refusal_has_its_status_and_code(refusal: Refusal, status: int) -> None:
    error = api_error(refusal)
    assert (error.status, error.code) == (status, refusal.code)
    waits = status in (429, 503) or isinstance(refusal, StillRunning)
    waits = waits and not isinstance(refusal, QuotaExhausted)
    assert ("retry-after" in error.headers) == waits


def test_a_rate_limit_tells_the_wait_and_the_figures() -> None:
    headers = api_error(RateLimited("rpm", "key", 11.2, FIGURES)).headers
    assert headers["retry-after"] == "12"
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-reset-requests"] == "12s"


def test_a_budget_that_is_used_up_tells_clients_not_to_try_again() -> None:
    error = api_error(QUOTA)
    assert (error.type, error.code) == ("insufficient_quota", "insufficient_quota")
    assert error.headers["x-should-retry"] == "false"
    assert error.headers["x-ratelimit-limit-requests"] == "5"
    assert "100 tokens a day, of which 95 tokens are used" in error.message


def test_a_cost_that_can_never_pass_names_the_field() -> None:
    assert api_error(CostAboveBurst("tpm", "key", 500, 100)).param == "max_tokens"


def test_why_a_key_is_refused_is_not_told() -> None:
    messages = {api_error(Unauthorized(why)).message for why in ("revoked", "unknown", "expired")}
    assert len(messages) == 1
