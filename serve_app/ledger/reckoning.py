"""Reckoning: what budgets have counted in Redis, held against the ledger.

Owns the comparison and its mending, which is also how budgets come back after Redis was emptied:
what a key or tenant has used of the running day and month is what the ledger says, and what is
reserved for its requests in flight. Refuses to know who asks, and when.
"""

import datetime
from collections.abc import Iterable
from typing import Any

import msgspec

from serve_app.ledger.database import LedgerDatabase
from serve_app.ledger.reader import UsageReader
from serve_app.ledger.sums import EPOCH, Dimension, UsageQuery
from serve_app.tenancy.refusals import StoreUnavailable
from serve_app.tenancy.store import Store

CHUNK = 64
TRIES = 50
"""Requests that end meanwhile make a try void."""
FIGURES = (("day", "tokens"), ("day", "money"), ("month", "tokens"), ("month", "money"))
Spent = dict[str, list[int]]
"""By scope (`k:<key>`, `t:<tenant>`), in the order of FIGURES."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """A counter that is not what the ledger says."""

    scope: str
    """key or tenant."""
    name: str
    period: str
    """day or month."""
    unit: str
    """tokens, or money in micro-units."""
    counted: int
    ledger: int
    """With what is reserved for requests in flight."""


class Findings(msgspec.Struct, kw_only=True):
    """What was compared, and what differs."""

    compared: int = 0
    """Keys and tenants."""
    too_busy: list[str] = []
    """Those with too many requests in flight to be compared."""
    differences: list[Difference] = []


class Reckoning:
    """One pool's budgets against its ledger."""

    def __init__(self, store: Store, database: LedgerDatabase) -> None:
        self._store, self._reader = store, UsageReader(store, database)

    async def compare(self, scopes: Iterable[str] = (), *, mend: bool = False) -> Findings:
        """All scopes that the ledger knows this month, and `scopes`; `mend` sets what differs.

        Raises:
            StoreUnavailable: Redis does not answer, or never stood still for a comparison.
            LedgerUnavailable: the database does not answer.
        """
        findings = Findings()
        done: set[str] = set()
        for _ in range(TRIES):
            moment = await self._moment()
            spent = await self._spent(moment[2], scopes)
            left = sorted(spent.keys() - done)
            if await self._compare_all(moment, spent, left, findings, done, mend):
                return findings
        raise StoreUnavailable("requests end too fast to be compared with the ledger; try again")

    async def restore(self) -> int:
        """Budgets of an emptied Redis, from the ledger; returns how many were set. Raises as
        `compare` does."""
        findings = await self.compare(mend=True)
        epoch, settled, day = await self._moment()
        await self._store.run("reckon", epoch, settled, day, 1)
        return len({(one.scope, one.name) for one in findings.differences})

    async def _moment(self) -> tuple[str, int, int]:
        _, epoch, settled, day = await self._store.run("reckon", "", 0, 0, 0)
        return epoch, settled, day

    async def _compare_all(
        self,
        moment: tuple[str, int, int],
        spent: Spent,
        left: list[str],
        findings: Findings,
        done: set[str],
        mend: bool,
    ) -> bool:
        """False when requests ended meanwhile; what was compared by then is."""
        for start in range(0, len(left), CHUNK):
            chunk = left[start : start + CHUNK]
            told: list[str | int] = []
            for scope in chunk:
                told += [scope, *spent[scope]]
            reply = await self._store.run("reckon", *moment, int(mend), *told)
            if reply[0] == "moved":
                return False
            for at, scope in enumerate(chunk):
                _note(findings, scope, reply[4 + 8 * at : 12 + 8 * at])
            done.update(chunk)
        return True

    async def _spent(self, day: int, scopes: Iterable[str]) -> Spent:
        """What the ledger says of the month that `day` is in."""
        today = EPOCH + datetime.timedelta(day)
        spent: Spent = {scope: [0, 0, 0, 0] for scope in scopes}
        by: tuple[tuple[str, Dimension], ...] = (("k", "key"), ("t", "tenant"))
        for kind, dimension in by:
            for at, since in ((0, today), (2, today.replace(day=1))):
                query = UsageQuery(by=(dimension,), since=since, pool=self._store.pool)
                for one in await self._reader.sums(query):
                    figures = spent.setdefault(f"{kind}:{getattr(one, dimension)}", [0, 0, 0, 0])
                    figures[at] += one.input_tokens + one.output_tokens
                    figures[at + 1] += one.cost_micros
        return spent


def _note(findings: Findings, scope: str, reply: list[Any]) -> None:
    if reply[0] < 0:
        findings.too_busy.append(scope)
        return
    findings.compared += 1
    kind, _, name = scope.partition(":")
    for (period, unit), counted, ledger in zip(FIGURES, reply[:4], reply[4:], strict=True):
        if counted != ledger:
            findings.differences.append(
                Difference(
                    scope="key" if kind == "k" else "tenant",
                    name=name,
                    period=period,
                    unit=unit,
                    counted=counted,
                    ledger=ledger,
                )
            )
