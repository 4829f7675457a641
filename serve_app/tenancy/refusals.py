"""Refusals: every reason why a request is not let in, as exceptions.

Owns what a client must be told: which limit, how long to wait, the headers that say so. Knows
neither HTTP status lines nor Redis; the ingress turns a refusal into its envelope by `code`.
"""

import math
from typing import ClassVar

import msgspec

from serve_app.tenancy.price import amount

LONGEST_RETRY_AFTER_S = 110.0
"""openai clients give up instead of waiting when told more than 120 s."""


class Figure(msgspec.Struct, frozen=True):
    """One meter after the reservation: `remaining` of `limit`, full again after `reset_s`."""

    limit: int
    remaining: int
    reset_s: float


class Figures(msgspec.Struct, frozen=True):
    """The tighter of key and tenant for each meter; None where no limit is set."""

    requests: Figure | None = None
    tokens: Figure | None = None
    input_tokens: Figure | None = None
    output_tokens: Figure | None = None

    def headers(self) -> dict[str, str]:
        """`x-ratelimit-{limit,remaining,reset}-*`, reset in OpenAI's form (`1s`, `6m0s`)."""
        out: dict[str, str] = {}
        for name in self.__struct_fields__:
            figure: Figure | None = getattr(self, name)
            if figure is None:
                continue
            unit = name.replace("_", "-")
            out[f"x-ratelimit-limit-{unit}"] = str(figure.limit)
            out[f"x-ratelimit-remaining-{unit}"] = str(figure.remaining)
            out[f"x-ratelimit-reset-{unit}"] = duration(figure.reset_s)
        return out


class Refusal(Exception):
    """A request is not let in. `str(refusal)` is fit for the client: no key, no secret in it."""

    code: ClassVar[str | None] = None
    """OpenAI's error code."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        figures: Figures | None = None,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.figures = figures or Figures()

    def headers(self) -> dict[str, str]:
        """Retry headers, where waiting helps, and the rate-limit figures."""
        out = self.figures.headers()
        if self.retry_after_s is not None:
            wait_s = min(self.retry_after_s, LONGEST_RETRY_AFTER_S)
            out["retry-after"] = str(max(1, math.ceil(wait_s)))
            out["retry-after-ms"] = str(max(1, math.ceil(wait_s * 1000)))
        return out


class Unauthorized(Refusal):
    """401: no such key, or it is revoked or expired. All three read the same."""

    code = "invalid_api_key"

    def __init__(self, reason: str) -> None:
        super().__init__("Incorrect API key provided.")
        self.reason = reason
        """For logs: malformed, unknown, revoked or expired."""


class RateLimited(Refusal):
    """429: a limit of the key or its tenant binds; the wait is exact (concurrency: estimated)."""

    code = "rate_limit_exceeded"

    def __init__(self, limit: str, scope: str, retry_after_s: float, figures: Figures) -> None:
        what = {
            "rpm": "requests per minute",
            "tpm": "tokens per minute",
            "itpm": "input tokens per minute",
            "otpm": "output tokens per minute",
            "concurrency": "requests at a time",
        }[limit]
        super().__init__(
            f"Rate limit reached for this {scope}: {what} ({limit}). "
            f"Please try again in {duration(retry_after_s)}.",
            retry_after_s=retry_after_s,
            figures=figures,
        )
        self.limit, self.scope = limit, scope


class QuotaExhausted(Refusal):
    """429: a budget of the key or its tenant has no room for the request; waiting is no use."""

    code = "insufficient_quota"

    def __init__(
        self,
        period: str,
        scope: str,
        *,
        unit: str,
        cost: int,
        budget: int,
        spent: int,
        figures: Figures,
    ) -> None:
        """`unit`: tokens, or the currency whose micro-units the three figures are."""
        all_told, taken, needed = (
            f"{figure} tokens" if unit == "tokens" else amount(figure, unit)
            for figure in (budget, spent, cost)
        )
        super().__init__(
            f"This {scope} has a budget of {all_told} a {period}, of which {taken} are used "
            f"or reserved; this request needs {needed}, expected output included. Lower "
            f"max_tokens, wait for the next {period} (UTC) or ask for a larger budget.",
            figures=figures,
        )
        self.period, self.scope, self.unit = period, scope, unit
        self.cost, self.budget, self.spent = cost, budget, spent

    def headers(self) -> dict[str, str]:
        return {**super().headers(), "x-should-retry": "false"}


class CostAboveBurst(Refusal):
    """400: the request costs more than the limit ever lets through at once; waiting is no use."""

    code = "request_too_large_for_limit"

    def __init__(self, limit: str, scope: str, cost: int, most: int) -> None:
        super().__init__(
            f"This request needs {cost} tokens (prompt and max_tokens), more than the {most} that "
            f"the {scope}'s {limit} limit ever allows at once. Lower max_tokens or raise the limit."
        )
        self.limit, self.scope, self.cost, self.most = limit, scope, cost, most


class Overloaded(Refusal):
    """429: replicas are there but taken, and the queue is full or too slow for the deadline."""

    code = "overloaded"

    def __init__(self, retry_after_s: float, figures: Figures | None = None) -> None:
        super().__init__(
            "The service is at capacity. Please try again later.",
            retry_after_s=retry_after_s,
            figures=figures,
        )


class NoReplica(Refusal):
    """503: no replica of the model is ready."""

    code = "no_replica"

    def __init__(self, retry_after_s: float, figures: Figures | None = None) -> None:
        super().__init__(
            "No replica of the model is ready. Please try again later.",
            retry_after_s=retry_after_s,
            figures=figures,
        )


class Stopped(Refusal):
    """409: whoever sent the request stopped it, by its id."""

    code = "request_cancelled"

    def __init__(self) -> None:
        super().__init__("The request was cancelled, by its id and with its API key.")

    def headers(self) -> dict[str, str]:
        return {"x-should-retry": "false"}


class StoreUnavailable(Refusal):
    """503: Redis does not answer, so nothing can be admitted."""

    code = "admission_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__(
            "Admission control is unavailable. Please try again later.", retry_after_s=1.0
        )
        self.reason = reason
        """For logs: what Redis or the network said."""


def duration(seconds: float) -> str:
    """A duration in OpenAI's form, rounded up: `0s`, `120ms`, `1s`, `6m0s`, `1h0m0s`."""
    if 0 < seconds <= 0.999:
        return f"{math.ceil(seconds * 1000)}ms"
    whole = math.ceil(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
