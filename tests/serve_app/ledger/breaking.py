"""A ledger database that fails where a test wants it to."""

from collections.abc import Sequence

from serve_app.ledger.database import LedgerDatabase, LedgerUnavailable
from serve_app.ledger.sums import UsageQuery, UsageSum
from serve_app.tenancy.usage import LedgerEntry


class BreakingDatabase(LedgerDatabase):
    """Away when told so; may die after it has stored, as a sink does that is killed then."""

    away = False
    dies_after = False

    def sums(
        self, query: UsageQuery, waiting: Sequence[tuple[str, LedgerEntry]] = ()
    ) -> list[UsageSum]:
        if self.away:
            raise LedgerUnavailable("away")
        return super().sums(query, waiting)

    def store(self, pool: str, entries: Sequence[LedgerEntry]) -> None:
        if self.away:
            raise LedgerUnavailable("away")
        super().store(pool, entries)
        if self.dies_after:
            raise LedgerUnavailable("died before Redis forgot")
