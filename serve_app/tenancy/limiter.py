"""Limits: what a key or tenant may do, and how the scripts' figures are read.

Owns the bounds of every limit. The arithmetic itself (GCRA on exact integers) is in
scripts/meter.lua, inside the step that admits; nothing here decides.
"""

import msgspec

from serve_app.tenancy.refusals import Figure, Figures

LARGEST_PRODUCT = 9_000_000_000
"""limit x burst_s stays exact in a double after scaling to microseconds."""

LARGEST_BUDGET = 10**15
RATES = ("rpm", "tpm", "itpm", "otpm")
BUDGETS = ("tokens_per_day", "tokens_per_month", "money_per_day", "money_per_month")


class Limits(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Limits of a key or a tenant; 0 means none.

    Raises:
        ValueError: a limit is negative, too large, or its burst would let nothing through.
    """

    rpm: int = 0
    """Requests per minute."""
    tpm: int = 0
    """Tokens per minute, input and output together."""
    itpm: int = 0
    """Input tokens per minute."""
    otpm: int = 0
    """Output tokens per minute."""
    concurrency: int = 0
    """Requests in flight, waiting ones included."""
    burst_s: int = 60
    """How many seconds' worth of a rate may be taken at once."""
    tokens_per_day: int = 0
    """A budget: input and output tokens of a calendar day, UTC."""
    tokens_per_month: int = 0
    """The same for a calendar month."""
    money_per_day: int = 0
    """A budget: what the requests of a calendar day, UTC, may cost, in micro-units."""
    money_per_month: int = 0
    """The same for a calendar month."""

    def __post_init__(self) -> None:
        if not 1 <= self.burst_s <= 86_400:
            raise ValueError("burst_s must be between 1 and 86400")
        if not 0 <= self.concurrency <= 1_000_000:
            raise ValueError("concurrency must be between 0 (no limit) and 1000000")
        for name in BUDGETS:
            if not 0 <= getattr(self, name) <= LARGEST_BUDGET:
                raise ValueError(f"{name} must be 0 (no limit) to {LARGEST_BUDGET}")
        for name in RATES:
            limit = getattr(self, name)
            if limit < 0 or limit * self.burst_s > LARGEST_PRODUCT:
                raise ValueError(f"{name} must be 0 (no limit) to {LARGEST_PRODUCT // 60}")
            if 0 < limit * self.burst_s < 60:
                raise ValueError(
                    f"{name} of {limit} lets nothing through in a burst of {self.burst_s} s: "
                    f"raise burst_s to {-(-60 // limit)} or more"
                )

    def fields(self) -> dict[str, int]:
        """As the scripts' hashes spell them."""
        return {
            "rpm": self.rpm,
            "tpm": self.tpm,
            "itpm": self.itpm,
            "otpm": self.otpm,
            "conc": self.concurrency,
            "burst": self.burst_s,
            "daytok": self.tokens_per_day,
            "montok": self.tokens_per_month,
            "daymoney": self.money_per_day,
            "monmoney": self.money_per_month,
        }


def read_limits(reply: list[int]) -> Limits:
    """From WHO's six integers: budgets are not among them."""
    names = ("rpm", "tpm", "itpm", "otpm", "concurrency", "burst_s")
    return Limits(**dict(zip(names, reply, strict=True)))


def read_figures(reply: list[int]) -> Figures:
    """From a script's twelve integers: limit (-1: none), remaining, reset in microseconds."""
    return Figures(
        *(
            None
            if reply[i] < 0
            else Figure(reply[i], max(0, reply[i + 1]), max(0, reply[i + 2]) / 1e6)
            for i in range(0, 12, 3)
        )
    )
