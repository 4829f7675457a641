"""Price: what tokens cost, in integers.

Owns the arithmetic of money: amounts are micro-units, millionths of a currency's unit, and never
floats. Refuses to know who pays. scripts/price.lua does the same sums inside the step that settles.
"""

import msgspec

MICRO = 1_000_000
MOST_PER_MILLION = 10**9
"""1000 units for a million tokens: up to there the scripts' doubles are exact."""


class Price(msgspec.Struct, frozen=True, kw_only=True):
    """Of a million tokens, in micro-units.

    Raises:
        ValueError: a price is negative or above MOST_PER_MILLION.
    """

    currency: str
    input: int
    cached_input: int
    output: int

    def __post_init__(self) -> None:
        for name in ("input", "cached_input", "output"):
            if not 0 <= getattr(self, name) <= MOST_PER_MILLION:
                raise ValueError(f"the price of {name} must be 0 to {MOST_PER_MILLION} micro-units")

    def cost(self, input_tokens: int, cached_tokens: int, output_tokens: int) -> int:
        """Micro-units of one request, rounded once, half up; cached tokens are among the input."""
        exact = (
            (input_tokens - cached_tokens) * self.input
            + cached_tokens * self.cached_input
            + output_tokens * self.output
        )
        return (exact + MICRO // 2) // MICRO

    def told(self) -> str:
        """As the scripts read it."""
        return f"{self.currency} {self.input} {self.cached_input} {self.output}"


def amount(micros: int, currency: str) -> str:
    """For people: `5.25 USD`, all decimals that there are, two at least."""
    units, rest = divmod(micros, MICRO)
    decimals = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{units}.{decimals} {currency}"
