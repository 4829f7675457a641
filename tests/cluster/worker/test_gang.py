"""What a rank is told, and how the function it runs is named in another process."""

import os
import sys
from pathlib import Path

import msgspec
import pytest

from cluster.config import EngineConfig
from cluster.worker.gang import Launch, RankSpec, rank_environment, visible_gpus


def spec(directory: str | None) -> RankSpec:
    return RankSpec(
        config=EngineConfig(model_path="none", tensor_parallel_size=2, threads_per_rank=3),
        rank=1,
        size=2,
        replica_address="unix:///nowhere",
        token="secret",
        directory=directory,
    )


def note(spec: RankSpec) -> None:
    """A main, found by name."""
    Path(spec.directory or "", "note").write_text(os.environ["OMP_NUM_THREADS"])


class Holder:
    @staticmethod
    def main(spec: RankSpec) -> None:
        """A main that cannot be found by its bare name."""


def test_a_launch_survives_the_wire_and_runs_its_main(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in rank_environment(spec("")):
        monkeypatch.setenv(name, "before")  # put back afterwards
    launch = Launch.decode(Launch.of(note, spec(str(tmp_path))).encode())
    assert launch.spec == spec(str(tmp_path))
    launch.run()
    assert (tmp_path / "note").read_text() == "3"


def test_mains_that_no_other_process_can_find_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for main in (lambda _: None, Holder.main):
        with pytest.raises(ValueError, match="importable module"):
            Launch.of(main, spec(None))
    monkeypatch.setattr(note, "__module__", "__main__")
    with pytest.raises(ValueError, match="importable module"):
        Launch.of(note, spec(None))


def test_noise_is_no_launch() -> None:
    with pytest.raises(msgspec.DecodeError):
        Launch.decode(b"noise")


LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "=lo"}


def test_one_node_stays_on_loopback() -> None:
    assert rank_environment(spec("/d")) == {"OMP_NUM_THREADS": "3"} | LOOPBACK


def test_several_nodes_meet_on_the_way_to_the_replica_unless_the_operator_says_where(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in LOOPBACK:
        monkeypatch.delenv(name, raising=False)
    near = msgspec.structs.replace(spec(None), replica_address="tcp://127.0.0.1:5")
    assert rank_environment(near) == {"OMP_NUM_THREADS": "3"} | LOOPBACK
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    assert rank_environment(near) == {"OMP_NUM_THREADS": "3", "GLOO_SOCKET_IFNAME": "lo"}
    assert rank_environment(spec(None)) == {"OMP_NUM_THREADS": "3"}


NODES = [("a", ["4"]), ("a", ["5"]), ("b", ["0"]), ("b", ["1"])]


@pytest.mark.parametrize(("rank", "visible"), enumerate(["4,5", "4,5", "0,1", "0,1"]))
def test_a_rank_sees_the_gangs_gpus_of_its_node(rank: int, visible: str) -> None:
    assert visible_gpus(rank, NODES) == visible


@pytest.mark.parametrize(
    "nodes",
    [
        NODES,
        [("a", ["2"]), ("b", ["7"]), ("a", ["3"]), ("a", ["0"])],
        [("a", ["GPU-1"]), ("a", ["GPU-9"]), ("a", ["GPU-5"])],
    ],
)
def test_its_own_gpu_is_the_one_that_a_rank_takes(nodes: list[tuple[str, list[str]]]) -> None:
    for rank, (_, own) in enumerate(nodes):
        seen = (visible_gpus(rank, nodes) or "").split(",")
        assert seen[rank % len(seen)] == own[0]


def test_shared_gpus_stay_as_they_are_given() -> None:
    assert visible_gpus(0, [("a", ["0"]), ("a", ["0"])]) is None
    assert visible_gpus(0, [("a", []), ("a", ["0"])]) is None


def test_the_module_is_light_enough_to_be_read_before_the_environment_is_set() -> None:
    code = "import sys, cluster.worker.gang; sys.exit('torch' in sys.modules)"
    assert os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", code) == 0
