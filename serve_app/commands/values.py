"""Times and money as people type them.

Owns their forms. All of it raises typer.BadParameter, which tells the option as well.
"""

import datetime
import re
import time
from decimal import Decimal, InvalidOperation

import typer

MICRO = 1_000_000
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def duration(text: str) -> int:
    """Seconds of `90s`, `15m`, `24h`, `30d`."""
    match = re.fullmatch(r"(\d{1,9})([smhd])", text.strip(), re.ASCII)
    if match is None:
        raise typer.BadParameter("a duration is a whole number with s, m, h or d, as in 24h")
    return int(match[1]) * _UNITS_S[match[2]]


def moment(text: str) -> int:
    """Unix seconds of a duration from now, of a date or time as in ISO 8601 (UTC unless it says
    otherwise); 0 of `never`."""
    if text.strip() == "never":
        return 0
    try:
        when = datetime.datetime.fromisoformat(text.strip())
    except ValueError:
        try:
            return int(time.time()) + duration(text)
        except typer.BadParameter:
            message = "give a duration such as 30d, a date such as 2027-01-31, or never"
            raise typer.BadParameter(message) from None
    return int((when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp())


def money(text: str) -> int:
    """Millionths of the amount: `12.50` is 12,500,000."""
    try:
        micros = Decimal(text) * MICRO
    except InvalidOperation:
        micros = Decimal("NaN")
    if not micros.is_finite() or micros != micros.to_integral_value():
        raise typer.BadParameter("an amount is a number with at most six decimals, as in 12.50")
    return int(micros)


def shown_moment(seconds: int) -> str:
    """`2027-01-31 12:00` UTC; `-` of 0."""
    if not seconds:
        return "-"
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M")
