"""Keys from the outside: typed commands and the admin API beside a service with two ingresses."""

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import psutil
import pytest
import redis

from serve_app.tenancy.redis_server import running_url
from tests.e2e.conformance.wire import (
    CHAT,
    COUNT_TO_150,
    MODEL,
    asked,
    bearer,
    error_of,
    events_of,
    eventually,
    get,
    post,
    streaming,
)
from tests.e2e.service import COMMAND, Service, running_service

pytestmark = pytest.mark.e2e
BRIEF = asked(max_tokens=1)
LONG = COUNT_TO_150 | {"max_tokens": 3000}


@pytest.fixture(scope="module")
def served() -> Iterator[Service]:
    two = {"DEEPREQUEST_DEPLOYMENT__INGRESS_REPLICAS": "2"}
    with running_service(two | {"DEEPREQUEST_ENGINE__TENSOR_PARALLEL_SIZE": "1"}) as running:
        yield running


def typed(service: Service, *words: str, state_dir: Path | None = None) -> Any:
    """A command as typed: what it printed and its exit code."""
    where = ("--state-dir", str(state_dir or service.state_dir))
    return subprocess.run(
        [*COMMAND, *words, *where], capture_output=True, text=True, check=False, timeout=120
    )


def statuses(service: Service, secret: str, count: int = 1) -> list[int]:
    return [post(service, BRIEF, key=secret).status_code for _ in range(count)]


def create(service: Service, *words: str) -> dict[str, Any]:
    made: dict[str, Any] = service.cli("keys", "create", "--tenant", "acme", *words)
    return made


def test_limits_hold_from_the_next_request_on(served: Service) -> None:
    made = create(served, "--rpm", "1")
    assert statuses(served, made["secret"], 2) == [200, 429]
    served.cli("keys", "limits", made["id"], "--rpm", "100")
    reply = post(served, BRIEF, key=made["secret"])
    assert reply.status_code == 200
    assert reply.headers["x-ratelimit-limit-requests"] == "100"
    served.cli("tenants", "set", "acme", "--rpm", "50")
    reply = post(served, BRIEF, key=made["secret"])
    assert reply.headers["x-ratelimit-limit-requests"] == "50"
    served.cli("tenants", "set", "acme", "--rpm", "0")


def test_a_rotated_key_is_good_with_both_secrets_until_the_overlap_ends(served: Service) -> None:
    made = create(served)
    rotated = served.cli("keys", "rotate", made["id"], "--overlap", "3s")
    assert statuses(served, made["secret"]) == statuses(served, rotated["secret"]) == [200]
    assert eventually(lambda: statuses(served, made["secret"]) == [401])
    assert statuses(served, rotated["secret"]) == [200]


def test_revoking_ends_streams_with_an_error_that_the_sdk_raises(served: Service) -> None:
    made = create(served)
    with served.client(made["secret"]) as client:
        chunks = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Count from 1 to 150"}],
            max_tokens=3000,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(chunks)
        served.cli("keys", "revoke", made["id"])
        with pytest.raises(openai.APIError) as caught:
            for _ in chunks:
                pass
    assert caught.value.code == "invalid_api_key"
    assert statuses(served, made["secret"]) == [401]
    assert eventually(lambda: served.metric("deeprequest_num_requests_running") == 0)


def test_scopes_and_models_bind_a_key(served: Service) -> None:
    made = create(served, "--scope", "usage")
    error_of(post(served, BRIEF, key=made["secret"]), 403, "permission_denied")
    other = create(served, "--model", "other")
    error_of(post(served, BRIEF, key=other["secret"]), 404, "model_not_found")
    assert get(served, "/v1/models", key=other["secret"]).json()["data"] == []
    served.cli("keys", "limits", other["id"], "--model", "other", "--model", MODEL)
    assert eventually(lambda: statuses(served, other["secret"]) == [200])


def test_an_edit_of_the_file_is_seen_and_a_mistake_is_told_in_the_log(served: Service) -> None:
    made = create(served, "--rpm", "7777")
    path = served.state_dir / "tenants.yaml"
    text = path.read_text()
    path.write_text(text.replace("rpm: 7777", "rpm: many"))
    time.sleep(2.5)  # both ingresses have looked by then
    reply = post(served, BRIEF, key=made["secret"])
    assert reply.headers["x-ratelimit-limit-requests"] == "7777"
    done = typed(served, "keys", "list")
    assert done.returncode == 1
    line = text.splitlines().index("    rpm: 7777") + 1
    assert f"tenants.yaml, line {line}: keys." in done.stderr
    path.write_text(text.replace("rpm: 7777", "rpm: 8888"))

    def limit() -> str:
        return post(served, BRIEF, key=made["secret"]).headers["x-ratelimit-limit-requests"]

    assert eventually(lambda: limit() == "8888")
    assert served.cli("audit", "--limit", "1")["audit"][0]["changes"] == ["rpm=8888"]


def test_keys_are_made_and_ended_over_http(served: Service) -> None:
    admin = bearer(served, create(served, "--scope", "admin")["secret"])
    with httpx.Client(base_url=served.url, headers=admin, timeout=30) as client:
        made = client.post("/admin/v1/keys", json={"tenant": "acme", "rpm": 2}).json()
        assert statuses(served, made["secret"], 3) == [200, 200, 429]
        path = f"/admin/v1/keys/{made['key']['id']}"
        assert client.patch(path, json={"rpm": 100}).json()["rpm"] == 100
        assert statuses(served, made["secret"]) == [200]
        assert client.delete(path).json()["status"] == "revoked"
        assert statuses(served, made["secret"]) == [401]
        assert client.get("/admin/v1/queue").json()["replicas"] == 1
        newest = client.get("/admin/v1/audit?limit=1").json()["audit"][0]
        assert (newest["op"], newest["name"]) == ("revoke", made["key"]["id"])
    assert [row["name"] for row in served.cli("tenants", "list")["tenants"]]
    assert served.cli("queue", "show")["replicas"] == 1
    error_of(get(served, "/admin/v1/keys"), 403, "permission_denied")


def test_a_service_that_enforces_passes_its_self_test_and_keeps_no_key_of_it(
    served: Service,
) -> None:
    before = served.cli("keys", "list")["keys"]
    done = typed(served, "limits", "self-test", "--url", served.url, "--json")
    told = json.loads(done.stdout)
    assert [check for check in told["checks"] if not check["passed"]] == []
    assert (done.returncode, told["passed"]) == (0, True)
    assert len(told["checks"]) >= 8
    assert served.cli("keys", "list")["keys"] == before


def test_a_self_test_with_another_services_keys_says_so(served: Service, tmp_path: Path) -> None:
    done = typed(served, "limits", "self-test", "--url", served.url, state_dir=tmp_path)
    assert done.returncode == 1
    assert "does not know a key that was just made" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_secret_is_in_logs_metrics_redis_errors_or_listings(served: Service) -> None:
    """Invariant I11: every way a key can be used and misused, then a search of all that is left."""
    made = create(served, "--rpm", "1000", "--label", "canary")
    rotated = served.cli("keys", "rotate", made["id"])
    spent = create(served, "--tokens-per-day", "1")
    ended = create(served)
    served.cli("keys", "revoke", ended["id"])
    unscoped = create(served, "--scope", "usage")
    secrets = [one["secret"] for one in (made, rotated, spent, ended, unscoped)]
    said = [reply.text for secret in secrets for reply in misuses(served, secret)]
    said += [stopped_stream(served)]
    listings = (("keys", "list"), ("keys", "show", made["id"]), ("audit",), ("tenants", "list"))
    said += [typed(served, *words).stdout for words in listings]
    said += [typed(served, *words, "--json").stdout for words in listings]
    said += [served.get(path)[1] for path in ("/metrics", "/openapi.json")]
    needles = [secret.split("-")[2].encode() for secret in secrets]
    needles.append((served.state_dir / "pepper").read_bytes().strip())
    texts = {f"said {place}": text.encode() for place, text in enumerate(said)}
    texts |= redis_content(served) | files(served)
    assert len(texts) > 60
    assert any(made["id"].encode() in text for name, text in texts.items() if "redis" in name)
    assert any("/logs/serve/" in name for name in texts)
    found = [name for name, text in texts.items() if any(needle in text for needle in needles)]
    assert found == []


def misuses(service: Service, secret: str) -> Iterator[httpx.Response]:
    """A right request and every kind of wrong one."""
    yield post(service, BRIEF, key=secret)
    yield post(service, b"{", key=secret)
    yield post(service, BRIEF | {"model": "other"}, key=secret)
    yield post(service, BRIEF | {"max_tokens": 10**6}, key=secret)
    yield post(service, BRIEF | {"max_tokens": "x"}, key=secret)
    yield post(service, BRIEF, key=secret[:-1] + ("a" if secret[-1] != "a" else "b"))
    yield post(service, BRIEF, key=f"{secret} {secret}")
    yield post(service, BRIEF, headers={"authorization": secret})
    yield post(service, BRIEF, key=secret, headers={"idempotency-key": "canary"})
    yield post(service, b"", path=f"{CHAT}/nosuch/cancel", key=secret)
    for path in ("/nope", "/v1/models", "/admin/v1/keys", f"{CHAT}"):
        yield get(service, path, key=secret)


def stopped_stream(service: Service) -> str:
    made = create(service)
    with streaming(service, LONG, key=made["secret"]) as reply:
        lines = reply.iter_lines()
        next(lines)
        service.cli("keys", "revoke", made["id"])
        rest = [line for line in lines if line]
    assert events_of(rest)[-1]["error"]["code"] == "invalid_api_key"
    return "\n".join(rest)


def redis_content(service: Service) -> dict[str, bytes]:
    """All keys and values, as DUMP gives them and as each type is read."""
    url = running_url(service.state_dir / "redis")
    assert url is not None
    client = redis.Redis(unix_socket_path=url.removeprefix("unix://"))
    read: dict[bytes, Callable[[bytes], Any]] = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"list": lambda key: client.lrange(key, 0, -1),
        b"stream": client.xrange,
    }
    found = {}
    for key in client.scan_iter(count=1000):
        kind: Any = client.type(key)
        content = key + bytes(client.dump(key) or b"") + repr(read[kind](key)).encode()
        found[f"redis {key.decode()}"] = content
    client.save()  # the RDB file is among the files
    return found


def files(service: Service) -> dict[str, bytes]:
    """What the service has written: its state, its own output, all logs of Ray and Serve."""
    state = service.state_dir
    paths = [path for path in state.rglob("*") if path.is_file()]
    paths = [path for path in paths if path.name not in ("demo-key", "pepper")] + [service.log]
    paths += [path for path in ray_directory(service).rglob("*") if path.is_file()]
    assert any(path.suffix == ".rdb" for path in paths)
    return {str(path): path.read_bytes() for path in paths}


def ray_directory(service: Service) -> Path:
    for child in psutil.Process(service.process.pid).children(recursive=True):
        for word in child.cmdline():
            if word.startswith("--log_dir=") and "/session_" in word:
                return Path(word.removeprefix("--log_dir=")).parents[1]
    raise AssertionError("Ray's directory was not found")
