"""The nouns that travel: their bounds and their way over the wire."""

import msgspec
import pytest

from cluster.request import (
    INT64_MAX,
    INT64_MIN,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineRequest,
    EngineStats,
    FinishReason,
    RequestOutput,
    RequestStatus,
    SamplingParams,
    TokenLogprobs,
    Usage,
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", -1),
        ("prompt_logprobs", -1),
        ("prompt_logprobs", 21),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("top_k", -1),
        ("top_k", INT64_MAX + 1),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("seed", INT64_MIN - 1),
        ("seed", INT64_MAX + 1),
        ("min_tokens", -1),
        ("min_tokens", 101),
        ("stop_token_ids", (-1,)),
        ("logprobs", -1),
        ("logprobs", 21),
        ("presence_penalty", -2.1),
        ("frequency_penalty", float("nan")),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-30),
        ("repetition_penalty", 2.1),
        ("logit_bias", {-1: 1.0}),
        ("logit_bias", {1: 100.1}),
        ("logit_bias", {1: float("nan")}),
        ("logit_bias", dict.fromkeys(range(1025), 1.0)),
    ],
)
def test_sampling_params_out_of_bounds_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} is out of bounds$"):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


def test_sampling_params_at_their_bounds_are_kept() -> None:
    SamplingParams(max_tokens=1, min_tokens=1, temperature=0.0, top_p=1.0, seed=INT64_MIN)
    SamplingParams(temperature=2.0, min_p=1.0, top_k=INT64_MAX, seed=INT64_MAX)
    SamplingParams(logit_bias=dict.fromkeys(range(1024), -100.0), repetition_penalty=2.0)
    SamplingParams(presence_penalty=-2.0, frequency_penalty=2.0)


def test_the_defaults_are_those_of_the_model() -> None:
    params = SamplingParams()
    assert (params.temperature, params.top_p, params.max_tokens) == (0.6, 0.95, 100)


def test_params_out_of_bounds_are_refused_on_arrival_too() -> None:
    data = msgspec.msgpack.encode({"top_p": 7.0})
    with pytest.raises(msgspec.ValidationError, match="top_p is out of bounds"):
        msgspec.msgpack.decode(data, type=SamplingParams)


def test_an_unknown_param_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field `beam_width`"):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"beam_width": 4}), type=SamplingParams)


@pytest.mark.parametrize("status", list(RequestStatus))
def test_a_status_says_whether_it_is_the_last(status: RequestStatus) -> None:
    alive = {RequestStatus.WAITING, RequestStatus.RUNNING, RequestStatus.PREEMPTED}
    assert status.finished == (status not in alive)


@pytest.mark.parametrize(
    "noun",
    [
        EngineRequest("a", [1, 2], SamplingParams(stop=("x",), stop_token_ids=(3,)), b"\x00salt"),
        EngineRequest("a", [1], SamplingParams(logit_bias={7: -100.0, 8: 0.5}, top_k=3)),
        EngineRequest("a", [1], SamplingParams(logprobs=20), prediction_token_ids=[4, 5]),
        EngineCoreOutput(
            "a",
            [1, 2],
            num_drafted=3,
            num_accepted=1,
            logprobs=[TokenLogprobs(-0.5, [1, 9], [-0.5, -1.5]), TokenLogprobs(-2.0)],
        ),
        EngineCoreOutputs(
            [EngineCoreOutput("a", [1], FinishReason.STOP, 5, 16), EngineCoreOutput("b", [2])],
            EngineStats(running=1, kv_total_blocks=9),
        ),
        RequestOutput(
            "a", "thought", "said", True, [7], FinishReason.STOP, "END", Usage(1, 2, 3, 4, 5, 6)
        ),
        RequestOutput("a", stop_reason=12),
    ],
)
def test_a_noun_survives_the_wire(noun: msgspec.Struct) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(noun), type=type(noun)) == noun
