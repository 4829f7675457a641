import pytest

from serve_app.tenancy.limiter import Limits, read_figures
from serve_app.tenancy.refusals import Figure


@pytest.mark.parametrize(
    "limits",
    [
        {"rpm": -1},
        {"tpm": 10**9},
        {"concurrency": -1},
        {"burst_s": 0},
        {"rpm": 5, "burst_s": 11},
        {"otpm": 200_000_000, "burst_s": 60},
        {"tokens_per_day": -1},
        {"tokens_per_month": 10**16},
    ],
)
def test_limits_out_of_bounds_are_refused(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        Limits(**limits)


def test_burst_that_lets_one_request_through_is_allowed() -> None:
    assert Limits(rpm=5, burst_s=12).fields()["burst"] == 12


def test_fields_are_spelled_as_the_scripts_read_them() -> None:
    rates = Limits(rpm=1, tpm=2, itpm=3, otpm=4, concurrency=5, burst_s=60).fields()
    unset = {"daytok": 0, "montok": 0, "daymoney": 0, "monmoney": 0}
    assert rates == {"rpm": 1, "tpm": 2, "itpm": 3, "otpm": 4, "conc": 5, "burst": 60} | unset
    budgets = Limits(tokens_per_day=7, tokens_per_month=8).fields()
    assert (budgets["daytok"], budgets["montok"]) == (7, 8)


def test_figures_are_read_in_the_scripts_order() -> None:
    figures = read_figures([5, 4, 12_000_000, -1, -1, 0, 100, 0, 500_000, -1, -1, 0])
    assert figures.requests == Figure(5, 4, 12.0)
    assert figures.tokens is None
    assert figures.input_tokens == Figure(100, 0, 0.5)
    assert figures.output_tokens is None
