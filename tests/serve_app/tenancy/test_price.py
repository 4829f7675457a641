"""Prices: the integers here, those of the scripts, and fractions must agree."""

from fractions import Fraction
from pathlib import Path

import hypothesis.strategies as st
import pytest
import redis
from hypothesis import given, settings

from serve_app.tenancy import store
from serve_app.tenancy.composition import compose
from serve_app.tenancy.price import MOST_PER_MILLION, Price, amount
from serve_app.tenancy.redis_server import RedisServer

SCRIPTS = Path(store.__file__).parent / "scripts"
TOKENS, PER_MILLION = st.integers(0, 2**31 - 1), st.integers(0, MOST_PER_MILLION)
PRICES = st.builds(
    Price, currency=st.just("EUR"), input=PER_MILLION, cached_input=PER_MILLION, output=PER_MILLION
)
FORMULA = """-- uses: common meter price
return {cost_of(ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]))}
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    """scripts/price.lua with the parts that it needs."""
    folder = tmp_path_factory.mktemp("scripts")
    for part in SCRIPTS.glob("*.lua"):
        (folder / part.name).write_text(part.read_text())
    (folder / "formula.lua").write_text(FORMULA)
    return compose(folder, "formula")


@settings(max_examples=500, deadline=None)
@given(price=PRICES, fresh=TOKENS, cached=st.integers(0, 2**30), output=TOKENS)
def test_cost_is_exact_and_rounded_once(
    redis_server: RedisServer, script: str, price: Price, fresh: int, cached: int, output: int
) -> None:
    prompt = min(fresh + cached, 2**31 - 1)
    cached = min(cached, prompt)
    parts = (prompt - cached, price.input), (cached, price.cached_input), (output, price.output)
    exact = sum(Fraction(tokens * per_million, 1_000_000) for tokens, per_million in parts)
    cost = price.cost(prompt, cached, output)
    assert -Fraction(1, 2) <= exact - cost < Fraction(1, 2)
    path = redis_server.url.removeprefix("unix://")
    with redis.Redis(unix_socket_path=path, decode_responses=True) as client:
        told = client.eval(
            script, 1, "dr:{price}:pool", 1, price.told(), *map(str, (prompt, cached, output))
        )
    assert told == [cost, "EUR"]


def test_no_price_costs_nothing(redis_server: RedisServer, script: str) -> None:
    path = redis_server.url.removeprefix("unix://")
    with redis.Redis(unix_socket_path=path, decode_responses=True) as client:
        assert client.eval(script, 1, "dr:{price}:pool", 1, "", "9", "1", "9") == [0, ""]


@pytest.mark.parametrize("wrong", [-1, MOST_PER_MILLION + 1])
def test_a_price_out_of_bounds_is_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match="cached_input"):
        Price(currency="USD", input=1, cached_input=wrong, output=1)


@pytest.mark.parametrize(
    ("micros", "told"),
    [(0, "0.00 USD"), (5_250_000, "5.25 USD"), (1, "0.000001 USD"), (10**9, "1000.00 USD")],
)
def test_amounts_are_told_in_whole_units(micros: int, told: str) -> None:
    assert amount(micros, "USD") == told
