"""What a raw prompt hands to the engine, or is refused for."""

from typing import Any

import httpx2 as httpx
import pytest

from cluster.request import MAX_PROMPT_LOGPROBS, EngineRequest
from cluster.text.tokenizer import BOS, THINK_START, USER
from serve_app.deltas import Submission
from tests.serve_app.site import CONTEXT, MODEL_ID, Site, error_of

PATH = "/v1/completions"

pytestmark = pytest.mark.anyio


async def post(site: Site, key: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    body = {"model": MODEL_ID, "prompt": "Once upon", **fields}
    return await site.client.post(PATH, json=body, headers=key or await site.bearer())


async def submitted(
    site: Site, monkeypatch: pytest.MonkeyPatch, **fields: Any
) -> tuple[dict[str, Any], list[EngineRequest]]:
    """The reply, and the runs that the replica was given for it."""
    runs: list[EngineRequest] = []
    await site.world.replica()
    submit = site.replica.submit

    async def watched(submission: bytes) -> None:
        runs.extend(Submission.decode(submission).requests)
        await submit(submission)

    monkeypatch.setattr(site.replica, "submit", watched)
    reply = await post(site, **fields)
    assert reply.status_code == 200, reply.text
    return dict(reply.json()), runs


@pytest.mark.parametrize("prompt", ["Once upon", f"{BOS}Once upon", "", BOS])
async def test_a_text_begins_with_one_token_that_begins_every_prompt(
    site: Site, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    tokenizer = site.desk.tokenizer
    reply, (run,) = await submitted(site, monkeypatch, prompt=prompt, echo=True)
    text = prompt.removeprefix(BOS)
    assert run.prompt_token_ids == [tokenizer.bos_id, *tokenizer.encode(text)]
    assert reply["usage"]["prompt_tokens"] == len(run.prompt_token_ids)
    assert reply["choices"][0]["text"] == f"{prompt}hi"


async def test_ids_are_taken_as_they_are(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (run,) = await submitted(site, monkeypatch, prompt=[5, 6, 7])
    assert run.prompt_token_ids == [5, 6, 7]


async def test_a_text_may_spell_control_tokens_and_has_no_thoughts(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = site.desk.tokenizer
    _, (run,) = await submitted(site, monkeypatch, prompt=f"{USER}hi{THINK_START}\n")
    assert {tokenizer.user_id, tokenizer.think_start_id} <= set(run.prompt_token_ids)
    assert run.params.thinking is None


async def test_every_prompt_runs_as_often_as_asked_and_is_computed_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [[5, 6], [7, 8, 9]]
    reply, runs = await submitted(site, monkeypatch, prompt=prompts, n=2, seed=3, max_tokens=5)
    assert [run.prompt_token_ids for run in runs] == [prompts[0]] * 2 + [prompts[1]] * 2
    assert [run.prompt_of for run in runs] == [
        None,
        runs[0].request_id,
        None,
        runs[2].request_id,
    ]
    assert [run.params.seed == 3 for run in runs] == [True, False, True, False]
    assert len({run.request_id for run in runs}) == 4
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert reply["usage"]["prompt_tokens"] == 5
    assert reply["usage"]["completion_tokens"] == 12


async def test_without_a_seed_equal_prompts_are_drawn_differently(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, runs = await submitted(site, monkeypatch, prompt=["a", "a", "a"])
    assert len({run.params.seed for run in runs}) == 3


async def test_more_runs_than_choices_are_charged_and_not_shown(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply, runs = await submitted(site, monkeypatch, best_of=3)
    assert len(runs) == 3
    assert all(run.params.logprobs == 0 for run in runs)
    assert len(reply["choices"]) == 1
    assert reply["usage"]["completion_tokens"] == 9


async def test_nothing_generated_is_still_admitted(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, (run,) = await submitted(site, monkeypatch, max_tokens=0, echo=True)
    assert run.params.max_tokens == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": "gpt-4"}, "model", "model_not_found"),
        ({"prompt": [5, 10**6]}, "prompt[1]", "invalid_value"),
        ({"prompt": [[5], [10**6]]}, "prompt[1][0]", "invalid_value"),
        ({"prompt": "x" * 10**6}, "prompt", "context_length_exceeded"),
        ({"prompt": [5] * (CONTEXT - 9), "max_tokens": 10}, "prompt", "context_length_exceeded"),
        ({"prompt": [5] * CONTEXT, "max_tokens": 0, "echo": True}, "prompt", None),
        ({"n": 9}, "n", "invalid_value"),
        ({"best_of": 9, "stream": False}, "best_of", "invalid_value"),
        ({"suffix": "end"}, "suffix", "unsupported_parameter"),
        ({"logit_bias": {"9999999": 1}}, "logit_bias", "invalid_value"),
    ],
    ids=str,
)
async def test_what_cannot_be_served_is_refused_before_anything_is_reserved(
    site: Site, fields: dict[str, Any], param: str, code: str | None, stream: bool
) -> None:
    await site.world.replica()
    key = await site.bearer(rpm=1)
    for _ in range(2):
        reply = await post(site, key, **{"stream": stream, **fields})
        error = error_of(reply)
        assert reply.status_code == (404 if code == "model_not_found" else 400)
        assert (error["param"], code or error["code"]) == (param, error["code"])
    assert site.replica.submitted == 0


async def test_more_logprobs_of_prompts_than_a_reply_holds_are_refused(site: Site) -> None:
    await site.world.replica()
    each = MAX_PROMPT_LOGPROBS // 21 // 4
    prompts = [[5] * (each + 1)] * 4
    reply = await post(site, prompt=prompts, echo=True, logprobs=20)
    assert error_of(reply)["param"] == "logprobs"
    assert (await post(site, prompt=prompts, echo=True)).status_code == 200


async def test_a_stream_ends_with_counts_and_done(site: Site) -> None:
    await site.world.replica()
    reply = await post(site, stream=True, echo=True, stream_options={"include_usage": True})
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [line for line in reply.text.split("\n\n") if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    assert '"usage":{"prompt_tokens"' in events[-2]
    assert '"object":"text_completion"' in events[0]


async def test_a_request_is_run_once_by_its_idempotency_key(site: Site) -> None:
    await site.world.replica()
    key = await site.bearer() | {"idempotency-key": "one"}
    first, second = await post(site, key), await post(site, key)
    assert first.content == second.content
    assert second.headers["idempotent-replayed"] == "true"
    assert site.replica.submitted == 1
