"""LocalCluster: a private Ray with Ray Serve on this machine, for `deeprequest serve`.

Owns everything that makes several instances live side by side and leave nothing behind: the
temporary directory, Ray's token, HAProxy's files, the port ranges, and the end of every process
that came of it. Knows nothing of models, Redis or HTTP routes. A cluster on Kubernetes is made by
KubeRay, not here.
"""

import contextlib
import ctypes
import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import psutil

from serve_app.openai.errors import envelope, no_replica

_PR_SET_CHILD_SUBREAPER = 36
_PORTS_PER_INSTANCE = 100
_FAREWELL_S = 15.0
_LOGICAL_CPUS = 64
"""Placement on one machine is not limited by cores: ranks and replicas declare small shares."""


_NO_INGRESS = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 2\r\n"
    b"Cache-Control: no-cache\r\nConnection: close\r\n\r\n"
) + envelope(no_replica(2))


class PortTakenError(OSError):
    """The public port is in use."""


class ClusterStartError(RuntimeError):
    """Ray or Serve did not come up; the message says what may help."""


class LocalCluster:
    """Starts Ray and Serve on loopback; `stop` ends every process and removes all their files."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._directory: Path | None = None

    def start(self) -> None:
        """Bring up Ray, Serve's controller and HAProxy on the public port.

        Raises:
            ClusterStartError: they gave up; `stop` takes away what they left.
        """
        # Unix sockets lie below: HAProxy adds 72 characters and allows 97 in all.
        self._directory = Path(tempfile.mkdtemp(prefix="dr-", dir="/tmp"))
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        os.environ.pop("RAY_ADDRESS", None)
        os.environ.update(self._environment(self._directory))
        try:
            self._start_ray(self._directory)
        except Exception as error:  # Ray raises plain ones, by the kind of what did not answer
            raise ClusterStartError(_not_started(error)) from error
        # HAProxy answers by this file while no ingress runs; it is read at its next reload.
        for page in self._directory.glob("h/*/500.http"):
            page.write_bytes(_NO_INGRESS)

    def _start_ray(self, directory: Path) -> None:
        import ray
        from ray import serve

        ray.init(
            address="local",
            num_cpus=_LOGICAL_CPUS,
            include_dashboard=False,
            _temp_dir=str(directory / "ray"),
            _node_ip_address="127.0.0.1",
            object_store_memory=128 * 2**20,
            log_to_driver=False,
            configure_logging=True,
            logging_level="ERROR",
        )
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": self._host, "port": self._port},
            logging_config={"log_level": "WARNING"},
        )

    def stop(self) -> None:
        """End Ray and all that is left of it; nothing to do if it was not started."""
        if self._directory is None:
            return
        import ray

        # Ray says good-bye to its processes one by one and may wait for one that never answers.
        farewell = threading.Thread(target=ray.shutdown, daemon=True)
        farewell.start()
        farewell.join(_FAREWELL_S)
        children = psutil.Process().children(recursive=True)
        for child in children:
            _quietly(child.terminate)
        _, alive = psutil.wait_procs(children, timeout=3)
        for child in alive:
            _quietly(child.kill)
        psutil.wait_procs(alive, timeout=3)
        shutil.rmtree(self._directory, ignore_errors=True)

    @property
    def log_directory(self) -> Path:
        """Where Ray and Serve write their logs while the cluster lives."""
        assert self._directory is not None, "start() first"
        return self._directory / "ray" / "session_latest" / "logs"

    def check_port(self) -> None:
        """Raises PortTakenError if another process listens on the public port."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._host, self._port))
            except OSError as error:
                raise PortTakenError(
                    f"cannot listen on {self._host}:{self._port} ({error.strerror}); choose another"
                    " port with --port or DEEPREQUEST_PORT"
                ) from None

    def _environment(self, directory: Path) -> dict[str, str]:
        """Ray reads these when it is imported; its child processes inherit them."""
        haproxy = directory / "h"
        base = _free_port_range(self._port)
        half = _PORTS_PER_INSTANCE // 2
        settings = {
            "ENABLE_HA_PROXY": 1,
            "THROUGHPUT_OPTIMIZED": 1,
            "HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve_app.http_limits.serve_middlewares",
            # The default, 0.1 s, costs a twentieth of a core for ever; here every core computes.
            "CONTROL_LOOP_INTERVAL_S": 0.5,
            "HAPROXY_NBTHREAD": 1,
            # More than http_limits.MAX_HEADER_BYTES, so that it is the application that refuses.
            "HAPROXY_TUNE_BUFSIZE": 128 * 1024,
            "HAPROXY_CONFIG_FILE_LOC": haproxy / "haproxy.cfg",
            "HAPROXY_SOCKET_PATH": haproxy / "admin.sock",
            "HAPROXY_SERVER_STATE_BASE": haproxy,
            "HAPROXY_SERVER_STATE_FILE": haproxy / "server-state",
            "HAPROXY_METRICS_SOCKET_PATH": haproxy / "metrics.sock",
            "HAPROXY_METRICS_PORT": base,
            "HAPROXY_STATS_PORT": base + 1,
            "FALLBACK_PROXY_HTTP_PORT": base + 2,
            "FALLBACK_PROXY_GRPC_PORT": base + 3,
            "DIRECT_INGRESS_MIN_HTTP_PORT": base + 4,
            "DIRECT_INGRESS_MAX_HTTP_PORT": base + half - 1,
            "DIRECT_INGRESS_MIN_GRPC_PORT": base + half,
            "DIRECT_INGRESS_MAX_GRPC_PORT": base + _PORTS_PER_INSTANCE - 1,
        }
        return {f"RAY_SERVE_{name}": str(value) for name, value in settings.items()} | {
            "HOME": str(directory),
            "TMPDIR": str(directory),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            # Ray looks after itself seldom: nobody reads its metrics here, and memory is planned.
            "RAY_enable_metrics_collection": "0",
            "RAY_event_stats": "0",
            "RAY_raylet_report_resources_period_milliseconds": "1000",
            "RAY_memory_monitor_refresh_ms": "1000",
        }


def _not_started(error: Exception) -> str:
    said = next(iter(str(error).splitlines()), "") or "no reason given"
    return (
        f"Ray did not start ({type(error).__name__}: {said}); it waits for its processes for 30 s:"
        " start again when the machine is less busy, with 2 GB of memory and room in /tmp"
    )


def _free_port_range(seed: int) -> int:
    """The first of _PORTS_PER_INSTANCE ports below the ephemeral range that look free."""
    for step in range(90):
        base = 21000 + (seed + step * 7) % 90 * _PORTS_PER_INSTANCE
        if all(_is_free(base + offset) for offset in (0, 1, 2, 3, 4, 5, 50, 51)):
            return base
    raise OSError("no free range of 100 ports between 21000 and 30000")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _quietly(action: Callable[[], None]) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        action()
