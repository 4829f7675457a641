"""What the private cluster promises without Ray: the port, and files only once it starts."""

import socket
from pathlib import Path

import pytest

from serve_app.local_cluster import LocalCluster, PortTakenError


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
