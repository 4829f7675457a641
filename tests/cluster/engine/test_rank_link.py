"""A rank's line to its replica, seen from a replica made of a bare socket."""

import os
import socket
import tempfile
from collections.abc import Iterator

import pytest

from cluster.config import EngineConfig
from cluster.engine.core_messages import (
    AddRequest,
    Failed,
    FromRank,
    Heartbeat,
    Hello,
    Ready,
    Start,
    decode_from_rank,
    encode,
)
from cluster.engine.rank_link import beat_period
from cluster.request import EngineRequest, SamplingParams
from cluster.worker.channel import ChannelClosedError, StreamChannel
from cluster.worker.gang import RankMain, RankSpec
from cluster.worker.process_gang import ProcessGang
from tests.cluster.engine import fake_rank


class BareReplica:
    """Starts one rank, and listens to it word by word."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(f"{directory}/replica.sock")
        self._server.listen()
        self._server.settimeout(30)
        self.gang: ProcessGang | None = None

    def start(self, behaviour: str, main: RankMain = fake_rank.main) -> StreamChannel:
        config = EngineConfig(model_path=f"fake?{behaviour}", step_timeout_s=0.4)
        spec = RankSpec(
            config=config,
            rank=0,
            size=1,
            replica_address=f"unix://{self.directory}/replica.sock",
            token="secret",
            directory=self.directory,
        )
        self.gang = ProcessGang(main, [spec])
        return StreamChannel(self._server.accept()[0])

    def close(self) -> None:
        self._server.close()
        if self.gang is not None:
            self.gang.kill(grace_s=0.0)


@pytest.fixture
def replica() -> Iterator[BareReplica]:
    with tempfile.TemporaryDirectory(prefix="dr-") as directory:
        bare = BareReplica(directory)
        yield bare
        bare.close()


def hear(link: StreamChannel) -> FromRank:
    return decode_from_rank(link.receive(30))


def greet(link: StreamChannel) -> Hello:
    hello = hear(link)
    assert isinstance(hello, Hello)
    link.send(encode(hello.meeting or Start("", "")))
    return hello


def wait_until_ready(link: StreamChannel) -> None:
    greet(link)
    while not isinstance(hear(link), Ready):
        pass


def end_of(gang: ProcessGang | None) -> str:
    assert gang is not None
    gang.kill(grace_s=30)
    return gang.dead()[0]


def test_a_rank_says_who_it_is_and_keeps_beating(replica: BareReplica) -> None:
    link = replica.start("")
    hello = greet(link)
    assert (hello.token, hello.rank) == ("secret", 0)
    assert hello.pid > 0
    assert hello.meeting is not None
    heard = [hear(link) for _ in range(12)]
    assert sum(isinstance(message, Heartbeat) for message in heard) >= 5
    link.close()


@pytest.mark.parametrize("behaviour", ["load_s=600", ""])
def test_a_rank_leaves_and_tidies_up_when_its_replica_is_gone(
    replica: BareReplica, behaviour: str
) -> None:
    link = replica.start(behaviour)
    greet(link)
    link.close()
    assert end_of(replica.gang) == "exited with code 0"
    assert not os.path.exists(replica.directory), "a killed replica cannot remove it"


def test_a_step_that_is_too_old_is_the_last_word(replica: BareReplica) -> None:
    link = replica.start("hang_in_step=0")
    wait_until_ready(link)
    params = SamplingParams(max_tokens=100, ignore_eos=True)
    link.send(encode(AddRequest(EngineRequest("r", [1], params))))
    while not isinstance(message := hear(link), Failed):
        pass
    assert "is older than 0.4 s" in message.reason
    with pytest.raises(ChannelClosedError):
        hear(link)
    assert end_of(replica.gang) == "exited with code 1"
    link.close()


def test_a_replica_that_does_not_begin_with_start_is_left(replica: BareReplica) -> None:
    link = replica.start("")
    hear(link)
    params = SamplingParams()
    link.send(encode(AddRequest(EngineRequest("r", [1], params))))
    while not isinstance(message := hear(link), Failed):
        pass
    assert "Start" in message.reason
    link.close()


def test_ranks_beat_often_enough_to_be_missed_in_time() -> None:
    assert beat_period(30.0) == 1.0
    assert beat_period(0.4) == pytest.approx(0.1)
