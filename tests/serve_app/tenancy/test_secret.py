import stat
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from serve_app.tenancy.refusals import Unauthorized
from serve_app.tenancy.secret import (
    SECRET,
    PepperError,
    digest_of,
    load_pepper,
    new_key_id,
    new_secret,
)

PEPPER = b"p" * 64


def test_secret_has_the_published_form_and_names_its_key() -> None:
    key_id = new_key_id()
    match = SECRET.fullmatch(new_secret(key_id))
    assert match is not None
    assert match[1] == key_id
    assert new_secret(key_id) != new_secret(key_id)


def test_mistyped_secret_is_refused_by_its_checksum() -> None:
    secret = new_secret("abcd2345")
    for position in range(3, len(secret)):
        other = "a" if secret[position] != "a" else "b"
        with pytest.raises(Unauthorized):
            digest_of(secret[:position] + other + secret[position + 1 :], PEPPER)


@settings(deadline=None)
@given(st.text(max_size=80))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(Unauthorized):
        digest_of(text, PEPPER)


def test_digest_depends_on_the_pepper() -> None:
    secret = new_secret("abcd2345")
    assert digest_of(secret, PEPPER) == digest_of(secret, PEPPER)
    assert digest_of(secret, PEPPER) != digest_of(secret, b"q" * 64)


def test_pepper_is_made_once_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / "state" / "pepper"
    pepper = load_pepper(path)
    assert load_pepper(path) == pepper
    assert len(pepper) >= 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [*path.parent.iterdir()] == [path]
    path.write_text("short")
    with pytest.raises(PepperError, match="pepper"):
        load_pepper(path)
