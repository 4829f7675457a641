"""The network interface over which ranks of several nodes meet.

Owns one question to the operating system. A node of a cluster often has several interfaces (of
containers, of storage, of management), and gloo and nccl each guess: here it is the one that leads
to the replica, for Ray has proved that nodes reach each other there.
"""

import socket
from urllib.parse import urlsplit

import psutil


def interface_towards(address: str) -> str | None:
    """The name of the interface from which packets to `tcp://host:port` leave; None: not known.

    Nothing is sent.
    """
    url = urlsplit(address)
    if not url.hostname or not url.port:
        return None
    try:
        family, *_, target = socket.getaddrinfo(url.hostname, url.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(target)
            here = probe.getsockname()[0]
    except OSError:
        return None
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address.split("%")[0] == here for one in addresses):
            return name
    return None
