"""What a rank is told, and how the function it runs is named in another process."""

import os
import sys
from pathlib import Path

import msgspec
import pytest

from cluster.config import EngineConfig
from cluster.worker.gang import Launch, RankSpec, rank_environment


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


def test_one_node_stays_on_loopback_and_several_follow_the_operator() -> None:
    assert rank_environment(spec("/d")) == {"OMP_NUM_THREADS": "3", "GLOO_SOCKET_IFNAME": "lo"}
    assert rank_environment(spec(None)) == {"OMP_NUM_THREADS": "3"}


def test_the_module_is_light_enough_to_be_read_before_the_environment_is_set() -> None:
    code = "import sys, cluster.worker.gang; sys.exit('torch' in sys.modules)"
    assert os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", code) == 0
