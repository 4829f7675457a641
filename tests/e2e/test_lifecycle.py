"""Several instances side by side, replicas that come and go, and nothing left at the end."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.e2e.service import COMMAND, ROOT, Service, free_port, running_service

pytestmark = pytest.mark.e2e

SMALL = {"DEEPREQUEST_ENGINE__TENSOR_PARALLEL_SIZE": "1"}


def traces() -> set[str]:
    """What a service could leave: shared memory, and files and sockets in the temporary folder."""
    return {str(path) for folder in ("/dev/shm", "/tmp") for path in Path(folder).glob("*")}


def count(service: Service, word: str) -> str:
    reply = service.client(max_retries=3).chat.completions.create(
        model="deepseek-r1-32b",
        messages=[{"role": "user", "content": f"How many e's are in the word '{word}'?"}],
        temperature=0,
        max_tokens=200,
    )
    return (reply.choices[0].message.content or "").split("</think>")[-1]


def test_two_instances_run_side_by_side_and_leave_nothing(service: Service) -> None:
    before = traces()
    with running_service(SMALL) as other:
        processes = psutil.Process(other.process.pid).children(recursive=True)
        assert count(other, "engine") == count(service, "engine")
        foreign = other.client(service.key).with_options(max_retries=0)
        with pytest.raises(Exception, match="Incorrect API key provided, or none"):
            foreign.models.list()
        state_dir = other.state_dir
    assert other.process.returncode == 0
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert not alive
    assert not [path for path in state_dir.rglob("*") if path.is_socket()]
    left = {path for path in traces() - before if "deeprequest" in path or "/dr-" in path}
    assert not left
    assert service.get("/ready")[0] == 200


def test_keys_survive_a_restart(tmp_path: Path) -> None:
    with running_service(SMALL, tmp_path) as first:
        secret = first.cli("keys", "create", "--tenant", "t")["secret"]
        demo = first.key
    with running_service(SMALL, tmp_path) as second:
        assert second.key == demo
        assert second.client(secret).models.list().data


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"DEEPREQUEST_ENGINE__TENSOR_PARALLEL_SIZE": "3"}, "1, 2, 4"),
        ({"DEEPREQUEST_MODEL__PATH": "/nowhere"}, "/nowhere"),
        ({"DEEPREQUEST_ENGINE__MAX_NUM_SEQ": "3"}, "max_num_seq"),
    ],
)
def test_a_service_that_cannot_start_says_why_and_ends(
    tmp_path: Path, change: dict[str, str], named: str
) -> None:
    command = [*COMMAND, "serve", "--config", str(ROOT / "configs/quickstart.yaml")]
    options = ["--port", str(free_port()), "--state-dir", str(tmp_path / "state")]
    done = psutil.Popen(
        [*command, *options], env=os.environ | change, stdout=-1, stderr=-1, text=True
    )
    out, err = done.communicate(timeout=100)
    assert done.returncode != 0
    assert named in out + err


def test_replicas_follow_the_load_from_one_to_two_and_back() -> None:
    scaling = {
        "DEEPREQUEST_SCALING__MAX_REPLICAS": "2",
        "DEEPREQUEST_SCALING__TARGET_BACKLOG_S": "1",
        "DEEPREQUEST_SCALING__UPSCALE_DELAY_S": "0",
        "DEEPREQUEST_SCALING__DOWNSCALE_DELAY_S": "1",
        "DEEPREQUEST_ENGINE__MAX_NUM_SEQS": "8",
        "DEEPREQUEST_DEPLOYMENT__DRAIN_TIMEOUT_S": "5",
    }
    with running_service(SMALL | scaling) as service:
        client = service.client(max_retries=10)

        def work(_: int) -> None:
            client.chat.completions.create(
                model="deepseek-r1-32b",
                messages=[{"role": "user", "content": "Count from 1 to 200"}],
                max_tokens=400,
                extra_body={"ignore_eos": True},
            )

        with ThreadPoolExecutor(40) as pool:
            jobs = [pool.submit(work, index) for index in range(40)]
            await_replicas(service, 2)
            for job in jobs:
                job.result()
        await_replicas(service, 1)


def await_replicas(service: Service, wanted: int, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while service.metric("deeprequest_replicas_ready") != wanted:
        assert time.monotonic() < deadline, f"never {wanted} replicas"
        time.sleep(0.2)


def test_ctrl_c_during_the_start_ends_quickly(tmp_path: Path) -> None:
    command = [*COMMAND, "serve", "--config", str(ROOT / "configs/quickstart.yaml")]
    options = ["--port", str(free_port()), "--state-dir", str(tmp_path / "state")]
    process = psutil.Popen([*command, *options], stdout=-3, stderr=-3)
    time.sleep(6)
    children = process.children(recursive=True)
    process.send_signal(signal.SIGINT)
    process.wait(30)
    assert not psutil.wait_procs(children, timeout=5)[1]
