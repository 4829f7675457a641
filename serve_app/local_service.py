"""LocalService: everything `deeprequest serve` starts on one machine, in order, and its end.

Owns the state directory, the demo key, the order Redis, Ray, application, what is printed, and
that nothing is left behind. Knows no routes and no engine; on Kubernetes KubeRay plays this part.
"""

import asyncio
import contextlib
import fcntl
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.markup import escape

from cluster.engine.rank_main import main as model_rank
from cluster.worker.gang import RankMain
from serve_app import preflight
from serve_app.config import ServeConfig
from serve_app.local_cluster import ClusterStartError, LocalCluster, PortTakenError
from serve_app.sections import LedgerSection
from serve_app.status import publish_keys, status_if_known
from serve_app.stop_signals import StopSignals
from serve_app.tenancy.key_file import KeyFile, KeyFileError
from serve_app.tenancy.redis_server import RedisServer, RedisServerError, redis_for
from serve_app.tenancy.redis_url import read_url
from serve_app.tenancy.refusals import Refusal, StoreUnavailable
from serve_app.tenancy.secret import PepperError, digest_of, load_pepper
from serve_app.tenancy.store import StoreError

DEMO_TENANT = "demo"
_POLL_S = 0.5
_READY_TIMEOUT_S = 60.0
_LAST_WORDS_S = 0.5
"""What error events need to reach their clients."""


_NAMED = (ClusterStartError, PortTakenError, RedisServerError, KeyFileError, PepperError)
"""Their messages name what to change."""


class LocalServiceError(RuntimeError):
    """The service cannot start; the message names what to change."""


def run(config: ServeConfig, rank_main: RankMain = model_rank) -> None:
    """Start, print how to use it, and stay until Ctrl-C or SIGTERM.

    `rank_main` is what the engine's rank processes run.

    Raises:
        LocalServiceError: something needed is missing, taken or broken.
    """
    service = LocalService(config, rank_main)
    service.signals.install()
    try:
        with _sole_owner(config.state_dir):
            try:
                with service.signals.interrupting():
                    service.start()
                service.watch()
            except KeyboardInterrupt:
                pass
            finally:
                service.signals.ignore()
                service.say("stopping …")
                service.stop()
    except _NAMED as error:
        raise LocalServiceError(str(error)) from None
    except (StoreUnavailable, StoreError) as error:
        reason = error.reason if isinstance(error, StoreUnavailable) else str(error)
        raise LocalServiceError(
            f"Redis does not serve: {reason}; check admission.redis_url (DEEPREQUEST_REDIS_URL)"
        ) from None
    service.say("stopped; nothing was left running")


class LocalService:
    """Redis, a private Ray and the application, as one thing to start, watch and stop."""

    def __init__(self, config: ServeConfig, rank_main: RankMain = model_rank) -> None:
        self._config = config
        self._rank_main = rank_main
        self._started_at = time.monotonic()
        self._console = Console(soft_wrap=True, highlight=False)
        self._cluster = LocalCluster(config.http.host, config.http.port)
        self._redis: RedisServer | None = None
        self._redis_url = ""
        self.signals = StopSignals()

    def say(self, text: str) -> None:
        """One line, with the seconds since the start."""
        self._console.print(
            f"[dim]{time.monotonic() - self._started_at:5.1f} s[/dim]  {escape(text)}"
        )

    def start(self) -> None:
        """Bring everything up and wait until the application answers."""
        config = self._config
        self.say(f"DeepRequest starts {config.model.name or config.model.id} as {config.model.id}")
        self.say(f"state directory {config.state_dir}")
        preflight.check(config)
        self._cluster.check_port()
        self._redis_url, self._redis = redis_for(
            config.admission.redis_url, config.state_dir / "redis"
        )
        secret = self._demo_key()
        self.say(f"Redis is up ({'private' if self._redis else read_url(self._redis_url).shown()})")
        self._cluster.start()
        self.signals.install()
        ranks = config.engine_config().tensor_parallel_size
        self.say(f"Ray and Serve are up; starting the ingress and {ranks} tensor-parallel rank(s)")
        self._deploy()
        self.say("ready")
        self._console.print(self._how_to_use(secret), markup=False)

    def watch(self) -> None:
        """Look after Redis and tell changes of the replicas' states, until asked to stop."""
        shown: dict[str, str] = {}
        answered = True
        while not self.signals.asked:
            time.sleep(_POLL_S)
            if self._redis is not None and self._redis.ensure():
                self.say("Redis had died; it runs again with its data")
            replicas = self._states()
            if answered != (replicas is not None):
                answered = not answered
                self.say("Redis answers again" if answered else "Redis does not answer")
            if replicas is not None:
                self._tell_changes(shown, replicas)
                shown = replicas

    def _tell_changes(self, shown: dict[str, str], replicas: dict[str, str]) -> None:
        for replica in replicas.keys() | shown.keys():
            state = replicas.get(replica, "gone")
            if shown and shown.get(replica) != state:
                self.say(f"replica {replica} is {state}")

    def stop(self) -> None:
        """End everything that was started; safe at any moment.

        The ranks go first: each request that runs then ends with an error, not in silence.
        """
        self._end_ranks()
        self._cluster.stop()
        if self._redis is not None:
            self._redis.stop()

    def _end_ranks(self) -> None:
        found = self._status() if self._redis_url else None
        if found is None or not found["queue"]["running"]:
            return
        mine = {child.pid for child in psutil.Process().children(recursive=True)}
        ranks = [rank["pid"] for replica in found["replicas"] for rank in replica["ranks"]]
        for pid in mine.intersection(ranks):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_LAST_WORDS_S)

    def _demo_key(self) -> str:
        """The secret of the demo key, made at the first start; the book goes to Redis."""
        state_dir = self._config.state_dir
        pepper = load_pepper(self._config.pepper_path)
        key_file = KeyFile(self._config.tenants_path, pepper, by="deeprequest serve")
        secret_file = state_dir / "demo-key"
        secret = secret_file.read_text().strip() if secret_file.exists() else ""
        if not _is_active(secret, key_file, pepper):
            secret = key_file.create(DEMO_TENANT, label="made by deeprequest serve").secret
            secret_file.touch(mode=0o600)
            secret_file.write_text(secret + "\n")
        asyncio.run(publish_keys(self._redis_url, key_file.read(), self._config.admission.pool))
        return secret

    def _deploy(self) -> None:
        from ray import serve

        from serve_app.app import build_app

        admission = self._config.admission.model_copy(update={"redis_url": self._redis_url})
        deltas = self._config.deltas.model_copy(update={"host": "127.0.0.1"})
        ledger = LedgerSection(url=self._config.ledger_url)
        changes = {"admission": admission, "deltas": deltas, "ledger": ledger}
        config = self._config.model_copy(update=changes)
        try:
            with self._progress_told():
                serve.run(build_app(config, self._rank_main), name="deeprequest", route_prefix="/")
        except RuntimeError:
            raise LocalServiceError(f"the application did not start: {_reason()}") from None
        self._await_ready()

    @contextlib.contextmanager
    def _progress_told(self) -> Iterator[None]:
        """Print what starting replicas say of themselves, while the caller waits for them."""
        done = threading.Event()

        def tell() -> None:
            told = ""
            while not done.wait(_POLL_S):
                found = self._status()
                for replica in found["replicas"] if found else ():
                    if replica["progress"] not in ("", told):
                        told = replica["progress"]
                        self.say(f"replica {replica['id']}: {told}")

        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        try:
            yield
        finally:
            done.set()
            teller.join()

    def _await_ready(self) -> None:
        """Clients may be served already: an outage of Redis is waited out, as in `watch`."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while "ready" not in (self._states() or {}).values():
            if time.monotonic() > deadline:
                raise LocalServiceError(
                    f"no replica became ready; logs are in {self._cluster.log_directory}"
                )
            time.sleep(0.1)

    def _status(self) -> dict[str, Any] | None:
        return asyncio.run(status_if_known(self._redis_url, self._config.admission.pool))

    def _states(self) -> dict[str, str] | None:
        found = self._status()
        return found and {replica["id"]: replica["state"] for replica in found["replicas"]}

    def _how_to_use(self, secret: str) -> str:
        http = self._config.http
        url = f"http://{http.host}:{http.port}"
        question = "How many r's are in the word 'strawberry'?"
        body = (
            f'{{"model": "{self._config.model.id}", "max_tokens": 500, '
            f'"messages": [{{"role": "user", "content": "{question}"}}]}}'
        ).replace("'", "'\\''")
        return (
            f"\n  URL       {url}/v1   (documentation: {url}/docs)\n"
            f"  demo key  {secret}\n\n"
            f"curl {url}/v1/chat/completions -H 'Authorization: Bearer {secret}' "
            f"-H 'Content-Type: application/json' -d '{body}'\n"
        )


def _reason() -> str:
    """The last line of what Serve says of the deployment that failed."""
    from ray import serve

    for application in serve.status().applications.values():
        for deployment in application.deployments.values():
            lines = [line.strip() for line in deployment.message.splitlines() if line.strip()]
            errors = [line for line in lines if "Error: " in line and not line.startswith("File")]
            if errors:
                return str(errors[-1])
    return "Ray Serve gives no reason"


def _is_active(secret: str, key_file: KeyFile, pepper: bytes) -> bool:
    try:
        digest = digest_of(secret, pepper)
    except Refusal:
        return False
    return any(key.digest == digest and key.status == "active" for key in key_file.read().keys)


@contextlib.contextmanager
def _sole_owner(state_dir: Path) -> Iterator[None]:
    """Refuse to run twice on one state directory."""
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise LocalServiceError(
            f"another service runs on {state_dir}; give this one its own with --state-dir"
        ) from None
    try:
        yield
    finally:
        os.close(lock)
