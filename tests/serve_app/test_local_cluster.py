"""What the private cluster promises without Ray: the port, and files only once it starts."""

import ctypes
import os
import shutil
import socket
from pathlib import Path
from unittest.mock import Mock

import pytest
import ray

from serve_app.local_cluster import ClusterStartError, LocalCluster, PortTakenError


def folders() -> set[Path]:
    return set(Path("/tmp").glob("dr-*"))


def test_a_taken_port_is_named_with_the_way_out() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTakenError, match="DEEPREQUEST_PORT") as caught:
            LocalCluster("127.0.0.1", port).check_port()
    assert str(port) in str(caught.value)


def test_a_cluster_that_never_started_leaves_nothing() -> None:
    before = folders()
    cluster = LocalCluster("127.0.0.1", 1)
    cluster.stop()
    assert folders() - before == set()


def test_a_ray_that_gives_up_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(**_: object) -> None:
        raise TimeoutError("The node timed out during startup.\nLook elsewhere.")

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(ctypes, "CDLL", Mock())  # the tests' process adopts nobody
    monkeypatch.setattr(ray, "init", give_up)
    cluster = LocalCluster("127.0.0.1", 1)
    with pytest.raises(ClusterStartError) as caught:
        cluster.start()
    shutil.rmtree(cluster.log_directory.parents[2])
    (line,) = str(caught.value).splitlines()
    assert "The node timed out during startup." in line
    assert "start again" in line
