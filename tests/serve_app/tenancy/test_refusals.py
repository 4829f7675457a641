import pytest

from serve_app.tenancy.refusals import (
    CostAboveBurst,
    Figure,
    Figures,
    NoReplica,
    Overloaded,
    RateLimited,
    Refusal,
    StoreUnavailable,
    Unauthorized,
    duration,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0004, "1ms"),
        (0.12, "120ms"),
        (0.9995, "1s"),
        (1, "1s"),
        (1.001, "2s"),
        (59.5, "1m0s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (3661, "1h1m1s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_headers_name_limit_remaining_and_reset() -> None:
    figures = Figures(requests=Figure(5, 4, 12.0), output_tokens=Figure(1000, 7, 0.25))
    assert figures.headers() == {
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "4",
        "x-ratelimit-reset-requests": "12s",
        "x-ratelimit-limit-output-tokens": "1000",
        "x-ratelimit-remaining-output-tokens": "7",
        "x-ratelimit-reset-output-tokens": "250ms",
    }


def test_retry_after_is_rounded_up_and_never_beyond_what_clients_obey() -> None:
    short = RateLimited("rpm", "key", 11.2, Figures()).headers()
    assert (short["retry-after"], short["retry-after-ms"]) == ("12", "11200")
    instant = RateLimited("rpm", "key", 0.0003, Figures()).headers()
    assert (instant["retry-after"], instant["retry-after-ms"]) == ("1", "1")
    long = Overloaded(5000.0).headers()
    assert (long["retry-after"], long["retry-after-ms"]) == ("110", "110000")


def test_every_refusal_has_a_code_and_waits_only_where_waiting_helps() -> None:
    refusals: list[Refusal] = [
        Unauthorized("revoked"),
        CostAboveBurst("tpm", "key", 10, 5),
        RateLimited("concurrency", "tenant", 1.0, Figures()),
        Overloaded(1.0),
        NoReplica(1.0),
        StoreUnavailable("refused"),
    ]
    assert all(refusal.code for refusal in refusals)
    told = [type(refusal).__name__ for refusal in refusals if "retry-after" in refusal.headers()]
    assert told == ["RateLimited", "Overloaded", "NoReplica", "StoreUnavailable"]
