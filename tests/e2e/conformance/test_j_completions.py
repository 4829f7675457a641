"""Checklist J, items 99 and 100: raw prompts by the SDK and as bytes, whole and streamed."""

import json
import math
from typing import Any

import openai
import pytest

from tests.e2e.conformance.thoughts import END, STRAWBERRY, TOKENIZER
from tests.e2e.conformance.wire import MODEL, asked, chunks, error_of, post, stream
from tests.e2e.service import Service

pytestmark = pytest.mark.e2e

PATH = "/v1/completions"
SPELLING = "The word is 'banana'. Let me spell it: b-a-n-"
LISTS = ("tokens", "token_logprobs", "top_logprobs", "text_offset")


def raw(**fields: Any) -> dict[str, Any]:
    """A greedy request; `fields` are added or win."""
    return {"model": MODEL, "prompt": SPELLING, "temperature": 0, "max_tokens": 12, **fields}


def completion(service: Service, **fields: Any) -> dict[str, Any]:
    reply = post(service, raw(**fields), path=PATH)
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


def choice_of(service: Service, **fields: Any) -> dict[str, Any]:
    (choice,) = completion(service, **fields)["choices"]
    return dict(choice)


def ids_of(service: Service, text: str) -> list[int]:
    reply = post(service, {"model": MODEL, "prompt": text}, path="/tokenize")
    return list(reply.json()["tokens"])


def streamed(service: Service, **fields: Any) -> dict[int, dict[str, Any]]:
    """The choices of a stream that ended well, joined, by index."""
    choices: dict[int, dict[str, Any]] = {}
    for part in (
        one for chunk in chunks(service, raw(**fields), path=PATH) for one in chunk["choices"]
    ):
        choice = choices.setdefault(part["index"], {"text": "", "finish_reason": None})
        assert choice["finish_reason"] is None, "nothing follows the end"
        choice["text"] += part["text"]
        choice["finish_reason"] = part["finish_reason"]
        for name in LISTS if part["logprobs"] else ():
            choice.setdefault(name, []).extend(part["logprobs"][name])
    return choices


def test_j99_the_sdk_reads_a_completion(client: openai.OpenAI) -> None:
    found = client.completions.create(**raw(logprobs=2, user="someone"))
    assert found.object == "text_completion"
    assert found.id.startswith("cmpl-")
    assert (found.model, len(found.choices)) == (MODEL, 1)
    choice = found.choices[0]
    assert choice.finish_reason in ("stop", "length")
    assert choice.logprobs is not None
    assert choice.logprobs.tokens is not None
    assert choice.text.startswith(choice.logprobs.tokens[0])
    assert found.usage is not None
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_j99_text_and_its_ids_are_one_prompt_with_one_beginning(service: Service) -> None:
    ids = ids_of(service, SPELLING)
    assert ids.count(TOKENIZER.bos_id) == 1
    by_text = completion(service, return_token_ids=True)
    by_ids = completion(service, prompt=ids, return_token_ids=True)
    assert by_text["choices"] == by_ids["choices"]
    assert by_text["choices"][0]["prompt_token_ids"] == ids
    assert by_text["usage"]["prompt_tokens"] == by_ids["usage"]["prompt_tokens"] == len(ids)
    spelt = TOKENIZER.decode(ids[:1]) + SPELLING
    assert completion(service, prompt=spelt, return_token_ids=True)["choices"] == by_text["choices"]


@pytest.mark.parametrize("as_ids", [False, True])
def test_j99_several_prompts_are_answered_in_order(service: Service, as_ids: bool) -> None:
    texts = [SPELLING, "1 2 3 4", "Once upon a time"]
    prompts = [ids_of(service, text) for text in texts] if as_ids else texts
    found = completion(service, prompt=prompts, n=2, temperature=0.9, seed=5)
    assert [choice["index"] for choice in found["choices"]] == list(range(6))
    alone = [completion(service, prompt=one, n=2, temperature=0.9, seed=5) for one in prompts]
    said = [choice["text"] for one in alone for choice in one["choices"]]
    assert [choice["text"] for choice in found["choices"]] == said
    assert len(set(said)) > 3
    for name in ("prompt_tokens", "completion_tokens"):
        assert found["usage"][name] == sum(one["usage"][name] for one in alone)


def test_j99_an_echo_tells_what_lm_eval_reads(service: Service) -> None:
    # what the model says of its own tokens as it says them, it says of them as a prompt
    said = choice_of(service, logprobs=5, return_token_ids=True, ignore_eos=True)
    prompt = said["prompt_token_ids"] + said["token_ids"]
    for most in (1, 0):
        found = completion(service, prompt=prompt, echo=True, logprobs=5, max_tokens=most)
        assert found["usage"]["completion_tokens"] == most
        (choice,) = found["choices"]
        lists = choice["logprobs"]
        assert {len(lists[name]) for name in LISTS} == {len(prompt) + most}
        assert lists["token_logprobs"][0] is None
        assert lists["top_logprobs"][0] is None
        place = len(said["prompt_token_ids"])
        judged = lists["token_logprobs"][place : len(prompt)]
        assert judged == pytest.approx(said["logprobs"]["token_logprobs"], abs=0.05)
        for name, top in zip(lists["tokens"][1:], lists["top_logprobs"][1:], strict=True):
            assert name in top
            assert 5 <= len(top) <= 6
            assert sum(map(math.exp, top.values())) <= 1 + 1e-4
        greedy = lists["top_logprobs"][place : len(prompt)]
        tokens = lists["tokens"][place : len(prompt)]
        assert all(
            max(top.values()) - top[name] < 0.05 for name, top in zip(tokens, greedy, strict=True)
        )
        text = choice["text"]
        for at in range(1, len(prompt)):
            begin, end = lists["text_offset"][at - 1 : at + 1]
            if "\\x" not in lists["tokens"][at - 1]:
                assert text[begin:end] == lists["tokens"][at - 1]


def test_j99_the_cache_hides_nothing_of_a_prompt(service: Service) -> None:
    prompt = ids_of(service, "How many times does the letter a occur in banana? " * 60)
    fields = {"prompt": prompt, "echo": True, "logprobs": 1, "max_tokens": 1}
    first, second = completion(service, **fields), completion(service, **fields)
    told = [found["choices"][0]["logprobs"]["token_logprobs"] for found in (first, second)]
    assert len(told[0]) == len(prompt) + 1
    assert told[0][1:] == pytest.approx(told[1][1:], abs=0.05)
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    quiet = completion(service, prompt=prompt, max_tokens=1)
    assert quiet["usage"]["prompt_tokens_details"]["cached_tokens"] > len(prompt) // 2


@pytest.mark.parametrize("echo", [False, True])
@pytest.mark.parametrize("logprobs", [None, 2])
def test_j99_a_stream_joined_is_the_whole(
    service: Service, echo: bool, logprobs: int | None
) -> None:
    fields = {"n": 2, "temperature": 0.8, "seed": 3, "echo": echo, "logprobs": logprobs}
    whole, parts = completion(service, **fields)["choices"], streamed(service, **fields)
    assert sorted(parts) == [0, 1]
    for choice in whole:
        part = parts[choice["index"]]
        assert part["text"] == choice["text"]
        assert part["finish_reason"] == choice["finish_reason"]
        for name in ("tokens", "text_offset") if logprobs is not None else ():
            assert part[name] == choice["logprobs"][name]


def test_j99_a_stream_tells_its_usage_where_asked(client: openai.OpenAI, service: Service) -> None:
    options = {"include_usage": True}
    with client.completions.create(**raw(stream=True, stream_options=options)) as found:
        events = list(found)
    assert events[-1].choices == []
    assert events[-1].usage is not None
    assert all(event.usage is None for event in events[:-1])
    usage = completion(service)["usage"]
    assert events[-1].usage.completion_tokens == usage["completion_tokens"]
    lines = stream(service, raw(), path=PATH)
    assert lines[-1] == "data: [DONE]"
    assert not any('"usage"' in line for line in lines)
    running = chunks(
        service,
        raw(stream_options={"include_usage": True, "continuous_usage_stats": True}),
        path=PATH,
    )
    counts = [chunk["usage"]["completion_tokens"] for chunk in running]
    assert counts == sorted(counts)
    assert counts[-1] == usage["completion_tokens"]


def test_j99_the_best_of_several_is_one_of_them_and_all_are_counted(service: Service) -> None:
    fields = {"temperature": 1.2, "seed": 8, "max_tokens": 10, "logprobs": 0, "ignore_eos": True}
    everyone = completion(service, n=6, **fields)
    best = completion(service, n=2, best_of=6, **fields)
    means = {
        choice["text"]: sum(choice["logprobs"]["token_logprobs"]) / 10
        for choice in everyone["choices"]
    }
    ranked = sorted(means, key=lambda text: -means[text])
    assert [choice["text"] for choice in best["choices"]] == ranked[:2]
    assert best["usage"]["completion_tokens"] == everyone["usage"]["completion_tokens"] == 60
    (one,) = completion(service, best_of=1)["choices"]
    assert one == choice_of(service)


def test_j99_generation_fields_act_as_in_chats(service: Service) -> None:
    plain = choice_of(service, ignore_eos=True)["text"]
    stop = plain[4:6]
    stopped = choice_of(service, ignore_eos=True, stop=[stop])
    assert stopped["text"] == plain[: plain.index(stop)]
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", stop)
    (token,) = TOKENIZER.encode_content("z")
    forced = choice_of(service, logit_bias={str(token): 100}, max_tokens=3)
    assert forced["text"] == "zzz"
    assert forced["finish_reason"] == "length"
    varied = choice_of(service, ignore_eos=True, frequency_penalty=2.0, max_tokens=40)
    assert varied["text"] != choice_of(service, ignore_eos=True, max_tokens=40)["text"]
    seeded = {"temperature": 1.0, "seed": 4}
    assert choice_of(service, **seeded) == choice_of(service, **seeded)
    ended = choice_of(service, stop_token_ids=[token], logit_bias={str(token): 100})
    assert (ended["finish_reason"], ended["stop_reason"]) == ("stop", token)


def test_j99_a_raw_prompt_has_no_thoughts(service: Service) -> None:
    chat = asked(STRAWBERRY)
    prompt = post(service, chat, path="/v1/chat/completions/render").json()["token_ids"]
    fields = {"prompt": prompt, "max_tokens": 200}
    found = completion(service, **fields, return_token_ids=True)
    content = post(service, chat).json()["choices"][0]["message"]["content"]
    assert f"<think>\n{found['choices'][0]['text']}" == content
    assert found["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0
    assert END in found["choices"][0]["token_ids"]
    assert completion(service, **fields, stop="</think>")["choices"][0]["text"] in content


def test_j99_what_is_not_served_is_refused_clearly(service: Service) -> None:
    for body, param in (
        (raw(suffix="the end"), "suffix"),
        (raw(best_of=2, stream=True), "best_of"),
        (raw(n=2, best_of=1), "best_of"),
        (raw(prompt=[]), "prompt"),
        (raw(prompt=["a", 1]), "prompt[1]"),
        (raw(max_tokens=0), "max_tokens"),
        (raw(logprobs=21), "logprobs"),
    ):
        error = error_of(post(service, body, path=PATH), 400)
        assert error["param"] == param
        assert param in error["message"]
    error_of(post(service, {"model": MODEL}, path=PATH), 400, "missing_required_parameter")
    error_of(post(service, raw(), path=PATH, key="wrong"), 401, "invalid_api_key")
    reply = post(service, raw(stream=True, prompt="a " * 200_000), path=PATH)
    assert error_of(reply, 400, "context_length_exceeded")["param"] == "prompt"


@pytest.mark.parametrize("stream", [False, True])
def test_j100_ids_that_the_model_does_not_have_are_refused(service: Service, stream: bool) -> None:
    for prompt, param in (
        ([5, TOKENIZER.size], "prompt[1]"),
        ([[5], [6, 2**31 - 1]], "prompt[1][1]"),
        ([5, -1], "prompt[1]"),
        ([2**40], "prompt[0]"),
    ):
        reply = post(service, raw(prompt=prompt, stream=stream), path=PATH)
        assert error_of(reply, 400)["param"] == param


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_j100_ids_that_end_inside_a_character_do_not_leak_the_prompt(
    service: Service, cut: int
) -> None:
    secret = TOKENIZER.encode_content("my secret 🍓")
    inside = len(secret) - 4 + cut
    rest = TOKENIZER.encode_content("🍓")[cut]
    forced = {"logit_bias": {str(rest): 100}, "max_tokens": 1}
    whole = choice_of(service, prompt=secret[:inside], **forced)["text"]
    assert whole == "\ufffd"
    parts = streamed(service, prompt=secret[:inside], **forced)
    assert parts[0]["text"] == whole
    echoed = choice_of(service, prompt=secret[:inside], echo=True, **forced)["text"]
    assert echoed == "my secret \ufffd\ufffd"


def test_j99_bytes_on_the_wire_are_those_of_the_older_api(service: Service) -> None:
    lines = stream(service, raw(n=2, max_tokens=2, ignore_eos=True), path=PATH)
    assert lines[-1] == "data: [DONE]"
    found = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert {event["object"] for event in found} == {"text_completion"}
    assert len({(event["id"], event["created"], event["model"]) for event in found}) == 1
    for choice in (choice for event in found for choice in event["choices"]):
        assert {"index", "text", "logprobs", "finish_reason"} <= set(choice)
        assert "delta" not in choice
