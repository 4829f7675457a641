"""LedgerDatabase: the ledger in SQL, SQLite or PostgreSQL.

Owns the table and that an entry is stored once: its request id is the primary key, so whatever is
stored again changes nothing. One exception: a request that was taken for lost and came back has a
second entry, which replaces the first. A transaction sees the ledger of one moment. Refuses to know
Redis; blocks, so call it in a thread.
"""

import contextlib
import operator
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from serve_app.ledger.sums import COUNTS, UsageQuery, UsageSum, day_of, with_entries
from serve_app.tenancy.usage import LedgerEntry

CONNECT_TIMEOUT_S = 5
STATEMENT_TIMEOUT_MS = 30_000
CHUNK = 500


class LedgerUnavailable(OSError):
    """The database does not answer, or refuses; the message names no secret."""


_metadata = sa.MetaData()
_ledger = sa.Table(
    "ledger",
    _metadata,
    sa.Column("rid", sa.String(96), primary_key=True),
    sa.Column("pool", sa.String(64), nullable=False),
    sa.Column("key", sa.String(64), nullable=False),
    sa.Column("tenant", sa.String(64), nullable=False),
    sa.Column("model", sa.String(256), nullable=False),
    sa.Column("service_class", sa.String(32), nullable=False),
    sa.Column("how", sa.String(16), nullable=False),
    sa.Column("day", sa.Date, nullable=False),
    sa.Column("ended_at_ms", sa.BigInteger, nullable=False),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in COUNTS),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("queued_ms", sa.BigInteger, nullable=False),
    sa.Column("ran_ms", sa.BigInteger, nullable=False),
    sa.Column("epoch", sa.String(32), nullable=False),
    sa.Index("ledger_by_tenant", "tenant", "day"),
    sa.Index("ledger_by_key", "key", "day"),
    sa.Index("ledger_by_day", "day"),
)


class LedgerDatabase:
    """One database; calls may come from several threads."""

    def __init__(self, url: str) -> None:
        """`url`: `sqlite:///<path>` or `postgresql://<user>:<password>@<host>/<database>`.

        Raises:
            ValueError: another kind of URL.
        """
        self._engine = _engine(url)
        self._is_made = False

    @property
    def is_there(self) -> bool:
        """False of a file that nobody made yet: asking it would make it."""
        url = self._engine.url
        return url.drivername != "sqlite" or Path(str(url.database)).exists()

    def store(self, pool: str, entries: Sequence[LedgerEntry]) -> None:
        """All or nothing, each once. Raises LedgerUnavailable."""
        newest = {entry.rid: _row(pool, entry) for entry in entries}
        if newest:
            with self._transaction() as connection:
                connection.execute(self._upsert(), list(newest.values()))

    def stored(self, rids: Sequence[str]) -> set[str]:
        """Which of them are in the database. Raises LedgerUnavailable."""
        with self._transaction() as connection:
            return _stored(connection, rids)

    def sums(
        self, query: UsageQuery, waiting: Sequence[tuple[str, LedgerEntry]] = ()
    ) -> list[UsageSum]:
        """Sums in the order of what they are told apart by.

        `waiting`: entries with their pools that may not be stored yet. Read before this is called,
        so that an entry on its way is in one place or in both: it counts once.

        Raises LedgerUnavailable.
        """
        with self._transaction() as connection:
            found = [_sum(row) for row in connection.execute(_select(query)).mappings()]
            known = _stored(connection, [entry.rid for _, entry in waiting])
        fresh = [(pool, entry) for pool, entry in waiting if entry.rid not in known]
        return with_entries(query, found, fresh)

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sa.Connection]:
        try:
            with self._engine.begin() as connection:
                if not self._is_made:
                    _metadata.create_all(connection)
                yield connection
            self._is_made = True
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
            raise LedgerUnavailable(f"{self._engine.url.render_as_string()}: {reason}") from None

    def _upsert(self) -> Any:
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        insert = dialect.insert(_ledger)
        columns = (column.name for column in _ledger.columns if not column.primary_key)
        return insert.on_conflict_do_update(
            index_elements=[_ledger.c.rid],
            set_={name: insert.excluded[name] for name in columns},
            where=(_ledger.c.how == "lost") & (insert.excluded.how != "lost"),
        )


def _engine(url: str) -> sa.Engine:
    try:
        parsed = sa.make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is not None and parsed.drivername == "sqlite" and parsed.database:
        return _sqlite(parsed)
    if parsed is not None and parsed.drivername in ("postgresql", "postgres"):
        options = f"-c statement_timeout={STATEMENT_TIMEOUT_MS}"
        arguments = {"connect_timeout": CONNECT_TIMEOUT_S, "options": options}
        return sa.create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            connect_args=arguments,
            isolation_level="REPEATABLE READ",
            pool_size=2,
            pool_pre_ping=True,
        )
    raise ValueError(
        "ledger.url must be sqlite:///<path> or postgresql://<user>:<password>@<host>/<database>"
    )


def _sqlite(url: sa.URL) -> sa.Engine:
    engine = sa.create_engine(url, connect_args={"timeout": CONNECT_TIMEOUT_S})

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        # what Redis forgets afterwards has reached the disk, and readers never wait for the writer
        for pragma in ("journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")
        connection.isolation_level = None  # begins when it is told to, not at the first write

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    @sa.event.listens_for(engine, "do_connect")
    def make_private(*_: Any) -> None:
        assert url.database is not None
        with contextlib.suppress(OSError):  # SQLite itself says what is wrong
            Path(url.database).touch(mode=0o600)

    return engine


def _row(pool: str, entry: LedgerEntry) -> dict[str, Any]:
    row = msgspec.structs.asdict(entry)
    ended_at_ms = int(row.pop("id").partition("-")[0])
    return row | {"pool": pool, "day": day_of(entry), "ended_at_ms": ended_at_ms}


def _stored(connection: sa.Connection, rids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for start in range(0, len(rids), CHUNK):
        asked = _ledger.c.rid.in_(rids[start : start + CHUNK])
        found.update(connection.execute(sa.select(_ledger.c.rid).where(asked)).scalars())
    return found


def _select(query: UsageQuery) -> sa.Select[Any]:
    table = _ledger.c
    kept = [
        compare(column, value)
        for column, compare, value in (
            (table.tenant, operator.eq, query.tenant),
            (table.key, operator.eq, query.key),
            (table.day, operator.ge, query.since),
            (table.day, operator.lt, query.until),
            (table.pool, operator.eq, query.pool),
            (table.epoch, operator.ne, query.not_of_epoch),
        )
        if value is not None
    ]
    groups = [table[name] for name in (*query.by, "currency")]
    counts = (sa.func.coalesce(sa.func.sum(table[name]), 0).label(name) for name in COUNTS)
    requests = sa.func.count().label("requests")
    return sa.select(*groups, requests, *counts).where(*kept).group_by(*groups)


def _sum(row: sa.RowMapping) -> UsageSum:
    values = dict(row)
    for name in ("requests", *COUNTS):
        values[name] = int(values[name])
    return UsageSum(**values)
