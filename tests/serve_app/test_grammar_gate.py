import asyncio
from collections.abc import Iterator

import pytest

from cluster.text.grammar_trial import TrialLostError
from cluster.text.json_grammar import json_answer
from serve_app import grammar_gate
from serve_app.grammar_gate import GrammarGate
from serve_app.openai.errors import ApiError
from tests.serve_app.site import MODEL

GOOD, BAD = json_answer({"const": 1}), json_answer({"not": {}})

pytestmark = pytest.mark.anyio


@pytest.fixture
def gate() -> Iterator[GrammarGate]:
    gate = GrammarGate(MODEL)
    yield gate
    gate.close()


async def test_what_was_tried_once_is_known(
    gate: GrammarGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await gate.report(GOOD) == ""
    assert "not" in await gate.report(BAD)
    tried: list[str] = []

    def tries(source: str) -> str:
        tried.append(source)
        return "x"

    monkeypatch.setattr(gate, "_try", tries)
    assert await gate.report(GOOD) == ""
    assert "not" in await gate.report(BAD)
    monkeypatch.setattr(grammar_gate, "MAX_VERDICTS", 2)
    assert await gate.report("third") == "x"
    assert await gate.report(GOOD) == "x"
    assert tried == ["third", GOOD]


async def test_a_crowd_is_refused_rather_than_queued_without_end(
    gate: GrammarGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_gate, "MAX_WAITING", 3)
    sources = [json_answer({"const": number}) for number in range(8)]
    reports = await asyncio.gather(*map(gate.report, sources), return_exceptions=True)
    refused = [report for report in reports if isinstance(report, ApiError)]
    assert [report for report in reports if report == ""] == [""] * 3
    assert len(refused) == 5
    assert {error.status for error in refused} == {503}
    assert await gate.report(GOOD) == ""


async def test_a_grammar_that_could_not_be_tried_is_tried_again(
    gate: GrammarGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(source: str) -> None:
        raise TrialLostError

    with monkeypatch.context() as patch:
        patch.setattr(gate._trial, "run", lost)
        with pytest.raises(ApiError) as caught:
            await gate.report(GOOD)
    assert caught.value.status == 503
    assert await gate.report(GOOD) == ""
