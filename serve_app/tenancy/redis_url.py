"""RedisTarget: what `admission.redis_url` says.

Owns the forms of the URL and what can be wrong with one. Opens no connection.

    redis://[user[:password]@]host[:6379][/db]                          one server
    unix:///path                                                        one, by its socket
    redis+sentinel://[user[:password]@]host[:26379],…/service[/db]      the master Sentinel names
    redis+cluster://[user[:password]@]host[:6379],…                     a cluster, by some nodes

`rediss` in place of `redis` is TLS, `?ca_file=/path` the authority to trust, `?sentinel_username=`
and `?sentinel_password=` the sentinels' own account. Special letters are percent-encoded.
"""

from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

_PORTS = {"single": 6379, "sentinel": 26379, "cluster": 6379}
_OPTIONS = ("ca_file", "sentinel_username", "sentinel_password")


class RedisUrlError(ValueError):
    """Not a URL of a Redis; the message names the setting and the reason, never the password."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"admission.redis_url (DEEPREQUEST_REDIS_URL): {reason}")


class RedisTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Where Redis is, and as whom to speak to it."""

    kind: Literal["single", "sentinel", "cluster"] = "single"
    hosts: tuple[tuple[str, int], ...] = ()
    """Of the server, of sentinels, or of some nodes of the cluster."""
    socket: str = ""
    service: str = ""
    """What the sentinels call the master."""
    db: int = 0
    username: str | None = None
    password: str | None = None
    tls: bool = False
    ca_file: str | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    def shown(self) -> str:
        """For people: no account."""
        if self.socket:
            return f"unix://{self.socket}"
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        form = "" if self.kind == "single" else f"+{self.kind}"
        service = f"/{self.service}" if self.service else ""
        return f"redis{'s' if self.tls else ''}{form}://{hosts}{service}"


def read_url(url: str) -> RedisTarget:
    """Raises RedisUrlError."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise RedisUrlError(str(error)) from None
    scheme, _, form = parts.scheme.partition("+")
    options = _options(parts.query)
    if parts.scheme == "unix":
        if not parts.path or parts.netloc:
            raise RedisUrlError("a socket is unix:///path")
        if options:
            raise RedisUrlError("a socket has no options")
        return RedisTarget(socket=unquote(parts.path))
    if scheme not in ("redis", "rediss") or form not in ("", "sentinel", "cluster"):
        raise RedisUrlError(
            f"'{parts.scheme}' is none of redis, rediss, redis+sentinel, rediss+sentinel, "
            "redis+cluster, rediss+cluster, unix"
        )
    kind: Literal["single", "sentinel", "cluster"] = form or "single"  # type: ignore[assignment]
    _check_options(options, kind, tls=scheme == "rediss")
    account, _, hosts = parts.netloc.rpartition("@")
    username, _, password = account.partition(":")
    service, db = _path(kind, parts.path)
    return RedisTarget(
        kind=kind,
        hosts=_hosts(kind, hosts),
        service=service,
        db=db,
        username=unquote(username) or None,
        password=unquote(password) or None,
        tls=scheme == "rediss",
        ca_file=options.get("ca_file"),
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
    )


def _options(query: str) -> dict[str, str]:
    given = parse_qsl(query, keep_blank_values=True)
    for name, _ in given:
        if name not in _OPTIONS:
            raise RedisUrlError(f"'{name}' is none of the options {', '.join(_OPTIONS)}")
    return dict(given)


def _check_options(options: dict[str, str], kind: str, *, tls: bool) -> None:
    if "ca_file" in options and not tls:
        raise RedisUrlError("a ca_file is of use with rediss alone")
    if kind != "sentinel" and any(name.startswith("sentinel") for name in options):
        raise RedisUrlError("a sentinel account is of use with redis+sentinel alone")


def _hosts(kind: str, text: str) -> tuple[tuple[str, int], ...]:
    names = text.split(",")
    if kind == "single" and len(names) > 1:
        raise RedisUrlError("several hosts need redis+sentinel or redis+cluster")
    return tuple(_host(name, _PORTS[kind]) for name in names)


def _host(name: str, usual_port: int) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{name}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise RedisUrlError(f"'{name}' is not a host and a port from 1 to 65535") from None
    if not host:
        raise RedisUrlError("a host is missing")
    return host, port or usual_port


def _path(kind: str, path: str) -> tuple[str, int]:
    names = [unquote(name) for name in path.split("/") if name]
    service = names.pop(0) if kind == "sentinel" and names else ""
    if kind == "sentinel" and not service:
        raise RedisUrlError("the sentinels' name of the master is missing: …/service")
    if kind == "cluster" and names:
        raise RedisUrlError("a cluster has one database: nothing may follow its hosts")
    if len(names) > 1 or (names and not names[0].isdecimal()):
        raise RedisUrlError(f"'{'/'.join(names)}' is not the number of a database")
    return service, int(names[0]) if names else 0
