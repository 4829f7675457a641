"""Every message survives the wire, and nothing else does."""

import msgspec
import pytest

from cluster.engine.core_messages import (
    AbortRequest,
    AddRequest,
    EngineFacts,
    Failed,
    FromRank,
    Heartbeat,
    Hello,
    Progress,
    Ready,
    Start,
    StepOutputs,
    ToRank,
    decode_from_rank,
    decode_to_rank,
    encode,
)
from cluster.request import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineRequest,
    EngineStats,
    FinishReason,
    SamplingParams,
)

FROM_RANK: list[FromRank] = [
    Hello("token", 1, 4711, "node"),
    Hello("token", 0, 4711, "node", Start("seqpacket:///d/ranks.sock", "file:///d/store")),
    Progress("loading weights"),
    Ready(EngineFacts(704, (653,), 4096, 100, 16, "cpu", "float32")),
    StepOutputs(EngineCoreOutputs([EngineCoreOutput("r", [1, 2])], EngineStats(running=1))),
    StepOutputs(EngineCoreOutputs([EngineCoreOutput("r", [], FinishReason.ERROR)], EngineStats())),
    Heartbeat(),
    Failed("out of luck"),
]
TO_RANK: list[ToRank] = [
    Start("tcp://10.0.0.1:5", "tcp://10.0.0.1:6"),
    AddRequest(EngineRequest("r", [1, 2, 3], SamplingParams(stop=("x",)), b"salt")),
    AbortRequest("r"),
]


@pytest.mark.parametrize("message", FROM_RANK, ids=repr)
def test_what_ranks_say_survives_the_wire(message: FromRank) -> None:
    assert decode_from_rank(encode(message)) == message


@pytest.mark.parametrize("message", TO_RANK, ids=repr)
def test_what_ranks_are_told_survives_the_wire(message: ToRank) -> None:
    assert decode_to_rank(encode(message)) == message


@pytest.mark.parametrize("noise", [b"", b"GET / HTTP/1.1", b"\x95", encode(AbortRequest("r"))])
def test_a_replica_refuses_what_no_rank_says(noise: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        decode_from_rank(noise)
