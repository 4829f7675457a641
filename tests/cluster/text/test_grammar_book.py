import threading
from pathlib import Path

import pytest

from cluster.text import grammar_book
from cluster.text.grammar import GrammarError
from cluster.text.grammar_book import GrammarBook
from cluster.text.json_grammar import json_answer
from cluster.text.tokenizer import Tokenizer, TokenizerError

MODEL = Path(__file__).resolve().parents[3] / "configs" / "models" / "deeprequest-demo"
ANSWERS = [json_answer({"const": number}) for number in range(10)]


def test_answers_of_one_grammar_do_not_touch_each_other() -> None:
    book, tokenizer = GrammarBook(MODEL), Tokenizer(MODEL)
    book.prepare(ANSWERS[1])
    first, second = book.prepare(ANSWERS[1]).matcher(), book.prepare(ANSWERS[1]).matcher()
    begun = second.mask()
    for token_id in tokenizer.encode_content("1"):
        first.push(token_id)
    assert second.mask() == begun
    assert book.prepare(ANSWERS[1]).matcher().mask() == begun
    assert first.mask() != begun


def test_a_grammar_is_compiled_once_and_the_oldest_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grammar_book, "MAX_GRAMMARS", 3)
    book = GrammarBook(MODEL)
    compiled = []
    compile_one = book._compile

    def counted(source: str) -> object:
        compiled.append(source)
        return compile_one(source)

    monkeypatch.setattr(book, "_compile", counted)
    for number in (0, 1, 2, 0, 3, 0, 1):
        book.prepare(ANSWERS[number]).matcher()
    assert [ANSWERS.index(source) for source in compiled] == [0, 1, 2, 3, 1]
    monkeypatch.setattr(grammar_book, "MAX_BYTES", len(ANSWERS[0]))
    book.prepare(ANSWERS[4]).matcher()
    assert list(book._begun) == [ANSWERS[4]]


def test_what_went_wrong_is_told_when_the_grammar_is_needed(tmp_path: Path) -> None:
    book = GrammarBook(MODEL)
    book.prepare(json_answer({"not": {}}))
    with pytest.raises(GrammarError, match="not"):
        book.prepare(json_answer({"not": {}})).matcher()
    nowhere = GrammarBook(tmp_path)
    nowhere.prepare(ANSWERS[0])
    with pytest.raises(TokenizerError):
        nowhere.prepare(ANSWERS[0]).matcher()


@pytest.mark.parametrize("source", [ANSWERS[0], "no grammar at all"])
def test_who_asks_for_a_grammar_is_told_when_there_is_nothing_left_to_wait_for(source: str) -> None:
    book = GrammarBook(MODEL)
    told = threading.Event()
    book.compile(source, told.set)
    assert told.wait(60)
    again = threading.Event()
    book.compile(source, again.set)
    assert again.is_set()
    assert book._begun[source].done()


def test_who_holds_a_grammar_need_not_compile_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_book, "MAX_GRAMMARS", 1)
    book = GrammarBook(MODEL)
    held = book.prepare(ANSWERS[0])
    book.prepare(ANSWERS[1]).matcher()
    assert list(book._begun) == [ANSWERS[1]]
    monkeypatch.setattr(book, "_compile", lambda source: pytest.fail("compiled again"))
    assert held.matcher().mask()
