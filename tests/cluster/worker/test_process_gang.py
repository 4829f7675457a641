"""Child processes that become ranks, and never outlive their parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cluster.config import EngineConfig
from cluster.worker.gang import RankSpec
from cluster.worker.process_gang import ProcessGang

TOKEN = "a-secret-nobody-else-may-read"


def specs(size: int, directory: str | None) -> list[RankSpec]:
    return [
        RankSpec(
            config=EngineConfig(model_path="none", tensor_parallel_size=size, threads_per_rank=3),
            rank=rank,
            size=size,
            replica_address="unix:///nowhere",
            token=TOKEN,
            directory=directory,
        )
        for rank in range(size)
    ]


# Mains, found by name in the children.


def write_environment(spec: RankSpec) -> None:
    threads, interface = os.environ["OMP_NUM_THREADS"], os.environ["GLOO_SOCKET_IFNAME"]
    (Path(spec.directory or "") / str(spec.rank)).write_text(
        f"{threads} {interface} {'torch' in sys.modules}"
    )


def sleep(spec: RankSpec) -> None:
    (Path(spec.directory or "") / str(spec.rank)).write_text(str(os.getpid()))
    time.sleep(600)


@pytest.fixture
def gang(tmp_path: Path) -> Iterator[ProcessGang]:
    started = ProcessGang(sleep, specs(2, str(tmp_path)))
    yield started
    started.kill(grace_s=0.0)


def wait_for(path: Path) -> str:
    while not (path.exists() and path.read_text()):
        time.sleep(0.01)
    return path.read_text()


def test_the_environment_stands_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    gang = ProcessGang(write_environment, specs(2, str(tmp_path)))
    gang.kill(grace_s=30.0)
    assert gang.dead() == {0: "exited with code 0", 1: "exited with code 0"}
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["3 lo False"] * 2


def test_a_dead_rank_is_told_from_a_living_one(gang: ProcessGang, tmp_path: Path) -> None:
    pids = [int(wait_for(tmp_path / str(rank))) for rank in (0, 1)]
    assert gang.dead() == {}
    os.kill(pids[1], signal.SIGKILL)
    while not gang.dead():
        time.sleep(0.01)
    assert gang.dead() == {1: "killed by SIGKILL"}
    gang.kill(grace_s=0.0)
    gang.kill()
    assert gang.dead().keys() == {0, 1}
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_the_token_is_in_no_argument_and_no_environment(gang: ProcessGang, tmp_path: Path) -> None:
    process = psutil.Process(int(wait_for(tmp_path / "0")))
    assert TOKEN not in " ".join(process.cmdline())
    assert TOKEN not in " ".join(process.environ().values())


def test_children_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from cluster.worker.process_gang import ProcessGang;"
        "from tests.cluster.worker.test_process_gang import sleep, specs;"
        "gang = ProcessGang(sleep, specs(2, sys.argv[1])); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as parent:
        children = [psutil.Process(int(wait_for(tmp_path / str(rank)))) for rank in (0, 1)]
        parent.kill()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert (len(gone), alive) == (2, [])


def test_a_main_that_no_other_process_can_find_is_refused() -> None:
    with pytest.raises(ValueError, match="importable"):
        ProcessGang(lambda _: None, specs(1, None))
