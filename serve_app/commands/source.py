"""Where commands find keys and tenants, and how a running service hears of their changes.

Owns who is told to have made a change: whoever is logged in. Knows no command.
"""

import asyncio
import getpass
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from serve_app.commands.console import fail
from serve_app.config import ServeConfig, ServiceState, service_state, short_environment
from serve_app.sections import HttpSection
from serve_app.tenancy.key_file import KeyFile
from serve_app.tenancy.keys import ApiKey, KeyBook
from serve_app.tenancy.publishing import publish, running_version
from serve_app.tenancy.redis_server import running_url
from serve_app.tenancy.refusals import StoreUnavailable
from serve_app.tenancy.secret import load_pepper
from serve_app.tenancy.store import Store

Result = TypeVar("Result")


class Source:
    """The key file of a service and, where one runs, its Redis."""

    def __init__(self, config: Path | None, state_dir: Path | None) -> None:
        """Raises ConfigError."""
        self.state: ServiceState = service_state(config, state_dir)
        self.path = self.state.tenants_path

    @property
    def redis_url(self) -> str | None:
        """None: no service runs on the state directory."""
        return self.state.admission.redis_url or running_url(self.state.state_dir / "redis")

    def url(self) -> str:
        """Where a service with this file answers; without one where it does by default."""
        http = self.state.http if isinstance(self.state, ServeConfig) else HttpSection()
        port = short_environment().port or http.port
        return f"http://{'127.0.0.1' if http.host in ('0.0.0.0', '::') else http.host}:{port}"

    def book(self) -> KeyBook:
        """Reading makes nothing on disk. Raises KeyFileError."""
        return KeyFile(self.path, b"").read()

    def key(self, key_id: str) -> ApiKey:
        """Ends the command when no key has that id."""
        found = self.book().key(key_id)
        if found is None:
            fail(f"no key in {self.path} has the id {key_id}; `deeprequest keys list` shows them")
        return found

    def change(self, work: Callable[[KeyFile], Result], *, peppered: bool = False) -> Result:
        """Does `work` on the file and tells a running service at once; one that starts later reads
        the file. `peppered`: a secret is made.

        Raises:
            ValueError, OSError: as `work` does; nothing is changed then.
        """
        pepper = load_pepper(self.state.pepper_path) if peppered else b""
        url = self.redis_url
        newer_than = self._running_version(url) if url is not None else 0
        keys = KeyFile(self.path, pepper, by=f"cli:{_user()}", newer_than=newer_than)
        done = work(keys)
        if url is not None:
            self._publish(keys.read())
        return done

    def change_key(
        self, key_id: str, work: Callable[[KeyFile], Result], *, peppered: bool = False
    ) -> Result:
        """`change` of a key that must be there; where it is not, nothing is made on disk."""
        self.key(key_id)
        return self.change(work, peppered=peppered)

    def service_redis(self) -> str:
        """The URL of a running service's Redis; ends the command when none runs."""
        url = self.redis_url
        if url is None:
            where = self.state.state_dir
            fail(f"no service runs on {where}; start one, or give --state-dir or --config")
        return url

    def ask(self, question: Callable[[Store], Awaitable[Result]]) -> Result:
        """What a running service's Redis answers; ends the command when none runs. Raises
        StoreUnavailable."""
        url, pool = self.service_redis(), self.state.admission.pool

        async def asked() -> Result:
            async with Store(url, pool, tells_outages=False) as store:
                return await question(store)

        return asyncio.run(asked())

    def _running_version(self, url: str) -> int:
        try:
            return self.ask(running_version)
        except StoreUnavailable:  # the change is written all the same, and told as not published
            return 0

    def _publish(self, book: KeyBook) -> None:
        try:
            self.ask(lambda store: publish(store, book))
        except StoreUnavailable as error:
            fail(f"{self.path} is written, but Redis does not answer: {error.reason}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())
