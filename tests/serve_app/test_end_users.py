from structlog.testing import capture_logs

from serve_app.end_users import note_end_user, pseudonym
from serve_app.tenancy.admission import Identity
from serve_app.tenancy.refusals import Figures

ANN = "ann@example.org"


def identity(digest: str) -> Identity:
    return Identity("key-1", "team", digest, Figures())


def test_an_end_user_is_noted_by_a_pseudonym_alone() -> None:
    with capture_logs() as lines:
        note_end_user("chatcmpl-1", ANN, identity("ab" * 32))
    (line,) = lines
    assert line["request"] == "chatcmpl-1"
    assert line["key"] == "key-1"
    assert line["user"] == pseudonym(ANN, identity("ab" * 32))
    assert "ann" not in str(line)


def test_one_key_knows_its_users_apart_and_no_other_key_knows_them() -> None:
    one, other = identity("ab" * 32), identity("cd" * 32)
    assert pseudonym(ANN, one) == pseudonym(ANN, one)
    assert len({pseudonym(ANN, one), pseudonym("bob", one), pseudonym(ANN, other)}) == 3


def test_who_is_not_named_is_not_noted() -> None:
    with capture_logs() as lines:
        note_end_user("chatcmpl-1", None, identity("ab" * 32))
    assert lines == []
