from decimal import Decimal

import pytest

from serve_app.desk import ModelFacts
from serve_app.model_object import model_object
from serve_app.sections import PriceSection
from serve_app.tenancy.refusals import Figure, Figures

FACTS = ModelFacts("m", "fp_1", 4096, 1_700_000_000, None)


def test_limits_are_those_of_whoever_asks() -> None:
    found = model_object(FACTS, Figures(requests=Figure(60, 3, 1.0)))
    assert found["limits"] == {
        "max_tokens": 32768,
        "default_max_tokens": 100,
        "requests_per_minute": 60,
        "tokens_per_minute": None,
        "input_tokens_per_minute": None,
        "output_tokens_per_minute": None,
    }
    assert found["default_sampling"] == {"temperature": 0.6, "top_p": 0.95, "top_k": 0, "min_p": 0}
    assert found["pricing"] is None


@pytest.mark.parametrize(
    ("price", "expected"),
    [
        (
            PriceSection(
                input=Decimal("0.55"), cached_input=Decimal("0.14"), output=Decimal("2.19")
            ),
            {
                "currency": "USD",
                "prompt": "0.00000055",
                "completion": "0.00000219",
                "input_cache_read": "0.00000014",
            },
        ),
        (
            PriceSection(currency="EUR", input=Decimal(10), output=Decimal(0)),
            {
                "currency": "EUR",
                "prompt": "0.00001",
                "completion": "0",
                "input_cache_read": "0.00001",
            },
        ),
    ],
)
def test_prices_are_told_per_token(price: PriceSection, expected: dict[str, str]) -> None:
    assert model_object(FACTS._replace(price=price), Figures())["pricing"] == expected
