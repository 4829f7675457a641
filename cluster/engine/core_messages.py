"""What a replica and its ranks say to each other, and how it looks on the wire.

Every rank holds one link to its replica. All ranks: Hello, Progress, Heartbeat, Failed; rank 0
also Ready, then one StepOutputs per step. The replica: Start to all, then requests and aborts to
rank 0. The end of file on either side ends the other: a rank exits, a replica is dead.
"""

import msgspec

from cluster.request import EngineCoreOutputs, EngineRequest


class EngineFacts(msgspec.Struct, frozen=True, array_like=True):
    """What start-up found out about the engine."""

    vocab_size: int
    eos_token_ids: tuple[int, ...]
    max_model_len: int
    num_kv_blocks: int
    """The dummy block included."""
    block_size: int
    device: str
    dtype: str
    kernels: str = ""
    """Who computes, as far as it may change the bits of an answer."""
    computes_apart: bool = False
    """Whether steps are computed while the core goes on."""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """First of all. A wrong token is hung up on."""

    token: str
    rank: int
    pid: int
    node: str
    meeting: "Start | None" = None
    """From rank 0: where the others find it."""


class Progress(msgspec.Struct, frozen=True, array_like=True, tag="progress"):
    """For people: what start-up is doing."""

    text: str


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """From rank 0: all ranks have computed a step."""

    facts: EngineFacts


class StepOutputs(msgspec.Struct, frozen=True, array_like=True, tag="step"):
    """From rank 0, once per step."""

    step: EngineCoreOutputs


class Heartbeat(msgspec.Struct, frozen=True, array_like=True, tag="beat"):
    """The process is not stopped; whether its step is stuck, it watches itself."""


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """The rank's last word."""

    reason: str


class Start(msgspec.Struct, frozen=True, array_like=True, tag="start"):
    """Where the ranks meet: rank 0's listener, and the rendezvous of torch.distributed."""

    ranks_address: str
    rendezvous: str


class AddRequest(msgspec.Struct, frozen=True, array_like=True, tag="add"):
    """Let a request wait for its first step."""

    request: EngineRequest


class AbortRequest(msgspec.Struct, frozen=True, array_like=True, tag="abort"):
    """End a request; nothing is answered."""

    request_id: str


FromRank = Hello | Progress | Ready | StepOutputs | Heartbeat | Failed
ToRank = Start | AddRequest | AbortRequest

_encoder = msgspec.msgpack.Encoder()
_from_rank: msgspec.msgpack.Decoder[FromRank] = msgspec.msgpack.Decoder(FromRank)
_to_rank: msgspec.msgpack.Decoder[ToRank] = msgspec.msgpack.Decoder(ToRank)


def encode(message: FromRank | ToRank) -> bytes:
    """The message as msgpack bytes."""
    return _encoder.encode(message)


def decode_from_rank(data: bytes) -> FromRank:
    """Raises msgspec.DecodeError on a malformed message."""
    return _from_rank.decode(data)


def decode_to_rank(data: bytes) -> ToRank:
    """Raises msgspec.DecodeError on a malformed message."""
    return _to_rank.decode(data)
