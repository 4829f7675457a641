from pathlib import Path

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings

from serve_app.tenancy.key_defaults import KeyDefaults
from serve_app.tenancy.key_yaml import BookError, read_book, write_book
from serve_app.tenancy.keys import CLASSES, ApiKey, Change, KeyBook, OldSecret, Tenant
from serve_app.tenancy.limiter import Limits

ROOT = Path(__file__).resolve().parents[3]
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
TIMES = st.integers(0, 2**40)
COUNTS = st.integers(1, 10_000)
CHANGES = st.none() | st.builds(Change, op=st.text(), by=st.text(), at=TIMES, version=TIMES)
LIMITS = st.builds(
    Limits,
    rpm=COUNTS,
    tpm=COUNTS,
    concurrency=COUNTS,
    tokens_per_day=COUNTS,
    money_per_month=COUNTS,
)
KEYS = st.builds(
    ApiKey,
    id=st.text("abcdefgh", min_size=8, max_size=8),
    digest=DIGESTS,
    tenant=st.sampled_from(["acme", "a.b-c_d"]),
    label=st.text(max_size=40),
    status=st.sampled_from(["active", "revoked"]),
    created_at=TIMES,
    expires_at=TIMES,
    scopes=st.lists(st.sampled_from(["inference", "usage", "admin"]), max_size=3).map(tuple),
    models=st.lists(st.sampled_from(["m", "org/m-1.5:b"]), max_size=3).map(tuple),
    max_class=st.sampled_from(CLASSES),
    limits=LIMITS,
    defaults=st.builds(KeyDefaults, answer_reserve=st.booleans()),
    old_secrets=st.lists(st.builds(OldSecret, digest=DIGESTS, until=TIMES), max_size=2).map(tuple),
    changed=CHANGES,
)
TENANTS = st.builds(Tenant, weight=st.integers(1, 100), limits=LIMITS, changed=CHANGES)
BOOKS = st.builds(
    KeyBook,
    version=TIMES,
    tenants=st.dictionaries(st.sampled_from(["acme", "bolt", "no", "1e3", "007"]), TENANTS),
    keys=st.lists(KEYS, max_size=3, unique_by=(lambda k: k.id, lambda k: k.digest)).map(tuple),
)
WRITTEN = f"""\
# a comment
version: 3
tenants:
  acme:
    weight: 2
    limits: {{rpm: 60}}
  bolt:
    limits:
      tpm: 1000
      burst_s: 30
keys:
  - id: abcd2345
    digest: {"a" * 64}
    tenant: acme
    scopes: [inference]
  - id: efgh2345
    digest: {"b" * 64}
    tenant: bolt
    expires_at: 1900000000
"""


def test_the_example_that_ships_is_a_book() -> None:
    book = read_book((ROOT / "configs/tenants.yaml").read_text())
    assert book.tenants["research"].limits.money_per_month == 500 * 10**6
    assert book.class_of(book.keys[0]) == "default"


@settings(deadline=None, max_examples=150)
@given(BOOKS)
def test_a_written_book_is_read_as_it_was(book: KeyBook) -> None:
    assert read_book(write_book(book)) == book


def test_a_book_in_json_is_read_as_well() -> None:
    book = read_book(WRITTEN)
    assert read_book(msgspec.json.encode(book).decode()) == book
    assert (book.version, book.tenants["acme"].limits.rpm) == (3, 60)
    assert read_book("") == read_book("# nothing yet\n") == KeyBook()


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("version: 3", "version: three", "line 2: version: Expected int"),
        ("version: 3", "version: 3: 4", "line 2: mapping values are not allowed"),
        ("version: 3", "versoin: 3", "line 2: Object contains unknown field versoin"),
        ("weight: 2", "weight: 0", "line 5: tenants.acme.weight: Expected int >= 1"),
        ("weight: 2", "wieght: 2", "line 5: tenants.acme: Object contains unknown field wieght"),
        ("rpm: 60", "rpm: -1", "line 6: tenants.acme.limits: rpm must be"),
        ("tpm: 1000", "tpm: many", "line 9: tenants.bolt.limits.tpm: Expected int"),
        ("burst_s: 30", "burst_s: 0", "line 10: tenants.bolt.limits: burst_s must be"),
        ("burst_s: 30", "tpm: 30", "line 10: tpm is there twice"),
        ("  bolt:", "  b olt:", "line 7: tenants.b olt: a tenant's name"),
        ("id: abcd2345", "id: ab", "line 12: keys.0.id: Expected str matching"),
        ("[inference]", "[inference, root]", "line 15: keys.0.scopes.1: Invalid enum value 'root'"),
        ("id: efgh2345", "id: abcd2345", "line 16: keys.1.id: another key has this id"),
        ("b" * 64, "a" * 64, "line 17: keys.1.digest: another key has this digest"),
        ("expires_at: 1900000000", "expires_at: soon", "line 19: keys.1.expires_at: Expected int"),
        ("    tenant: bolt\n", "", "line 16: keys.1: Object missing required field tenant"),
        (WRITTEN, "- a\n- b\n", "line 1: Expected object, got array"),
        (WRITTEN, "a: [b", "line 2: "),
    ],
)
def test_a_mistake_is_told_by_line_and_field(old: str, new: str, told: str) -> None:
    with pytest.raises(BookError) as error:
        read_book(WRITTEN.replace(old, new))
    assert str(error.value).startswith(told)
