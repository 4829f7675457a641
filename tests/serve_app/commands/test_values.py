import time

import pytest
import typer

from serve_app.commands.values import duration, moment, money, shown_moment


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("15m", 900), ("24h", 86_400)])
def test_durations_have_a_unit(text: str, seconds: int) -> None:
    assert duration(text) == seconds
    for wrong in (text[:-1], f"-{text}", f"{text}s", "h", "", "1.5h", "१h"):
        with pytest.raises(typer.BadParameter):
            duration(wrong)


def test_a_moment_is_a_date_a_time_a_duration_or_never() -> None:
    assert moment("2027-01-31") == moment("2027-01-31T00:00:00Z") == 1_801_353_600
    assert moment("2027-01-31T01:00:00+01:00") == 1_801_353_600
    assert shown_moment(1_801_353_600) == "2027-01-31 00:00"
    assert abs(moment("30d") - time.time() - 30 * 86_400) < 60
    assert (moment("never"), shown_moment(0)) == (0, "-")
    for wrong in ("soon", "2027-13-01", ""):
        with pytest.raises(typer.BadParameter):
            moment(wrong)


def test_money_is_exact() -> None:
    assert money("12.50") == 12_500_000
    assert money("0.000001") == 1
    assert money("0") == 0
    for wrong in ("0.0000001", "1,5", "nan", "inf", "", "ten"):
        with pytest.raises(typer.BadParameter):
            money(wrong)
