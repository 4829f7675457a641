import socket

import psutil
import pytest

from cluster.worker.interface import interface_towards


def test_the_loopback_leads_to_this_machine() -> None:
    assert interface_towards("tcp://127.0.0.1:80") == "lo"


def test_an_own_address_is_found_on_its_interface() -> None:
    own = {
        one.address: name
        for name, addresses in psutil.net_if_addrs().items()
        for one in addresses
        if one.family is socket.AF_INET
    }
    for address, name in own.items():
        assert interface_towards(f"tcp://{address}:9") == name


@pytest.mark.parametrize(
    "address", ["unix:///nowhere", "tcp://127.0.0.1", "tcp://no.such.host.invalid:80"]
)
def test_where_nothing_leads_nothing_is_named(address: str) -> None:
    assert interface_towards(address) is None
