"""Checklist B: keys, limits, request ids."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai
import pytest

from serve_app.tenancy.redis_server import RedisServer
from tests.e2e.conformance.wire import (
    CHAT,
    COUNT_TO_150,
    asked,
    error_of,
    eventually,
    get,
    is_idle,
    opened,
    post,
    settled,
    streaming,
)
from tests.e2e.service import Service, running_service

pytestmark = pytest.mark.e2e
PROMPT_TOKENS = "deeprequest_engine_prompt_tokens_total"
BRIEF = asked(max_tokens=2)
LONG = asked("How many a's are in 'banana'? " * 40, max_tokens=2)
"""Over any budget here by its prompt alone: what is reserved of max_tokens is learned."""
MOST_RUNNING = 16
IMPATIENT = {"x-stainless-read-timeout": "0.05"}
WRONG = "dr-aaaaaaaa-" + "a" * 49


@contextlib.contextmanager
def counting_client(
    service: Service, answers: list[int], *, key: str | None = None, **options: Any
) -> Iterator[openai.OpenAI]:
    """The official SDK as it comes; the status of everything it is told is put down."""

    def put_down(reply: httpx.Response) -> None:
        answers.append(reply.status_code)

    http = openai.DefaultHttpxClient(event_hooks={"response": [put_down]})
    with service.client(key, http_client=http, **options) as client:
        yield client


def test_b08_without_a_key_there_is_401_and_the_sdk_says_why(service: Service) -> None:
    reply = httpx.post(service.url + CHAT, json=BRIEF)
    error_of(reply, 401, "invalid_api_key")
    with pytest.raises(openai.AuthenticationError, match="API key"):
        service.client(WRONG).models.list()


@pytest.mark.parametrize("key", [WRONG, "sk-nonsense", "dr-", "x" * 500, "\u00e9"])
def test_b09_a_wrong_key_is_refused_and_never_echoed(service: Service, key: str) -> None:
    header = f"Bearer {key}".encode()
    reply = httpx.post(service.url + CHAT, json=BRIEF, headers={b"authorization": header})
    message = error_of(reply, 401, "invalid_api_key")["message"]
    assert message.startswith("Incorrect API key provided"), "litellm looks for these words"
    assert key not in reply.text


@pytest.mark.parametrize(
    ("template", "status"),
    [
        ("bearer {}", 200),
        ("BEARER {}", 200),
        ("Bearer  {}", 401),
        ("Bearer {} {}", 401),
        ("Token {}", 401),
        ("{}", 401),
    ],
)
def test_b10_the_scheme_is_bearer_in_any_case_and_one_space_follows(
    service: Service, template: str, status: int
) -> None:
    header = template.format(service.key, service.key)
    reply = post(service, BRIEF, headers={"authorization": header})
    assert reply.status_code == status


def test_b11_over_the_request_rate_there_is_429_with_the_wait_and_the_figures(
    service: Service,
) -> None:
    secret = service.cli("keys", "create", "--tenant", "b11", "--rpm", "3")["secret"]
    replies = [post(service, BRIEF, key=secret) for _ in range(4)]
    assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
    error_of(replies[-1], 429, "rate_limit_exceeded")
    assert 1 <= int(replies[-1].headers["retry-after"]) <= 120
    for reply in replies:
        assert reply.headers["x-ratelimit-limit-requests"] == "3"
        assert {"x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"} <= set(
            reply.headers
        )


def test_b12_over_the_token_rate_no_engine_step_is_made(service: Service) -> None:
    secret = service.cli("keys", "create", "--tenant", "b12", "--tpm", "300")["secret"]
    assert post(service, asked(max_tokens=250), key=secret).status_code == 200
    before = settled(service, PROMPT_TOKENS)
    reply = post(service, asked(max_tokens=250), key=secret)
    error_of(reply, 429, "rate_limit_exceeded")
    assert reply.headers["x-ratelimit-limit-tokens"] == "300"
    assert "x-ratelimit-remaining-tokens" in reply.headers
    assert settled(service, PROMPT_TOKENS) == before


@pytest.mark.parametrize("period", ["day", "month"])
def test_b13_a_budget_that_is_used_up_is_429_and_the_sdk_asks_once(
    service: Service, period: str
) -> None:
    options = ("--tenant", f"b13-{period}", f"--tokens-per-{period}", "120")
    secret = service.cli("keys", "create", *options)["secret"]
    used = post(service, BRIEF, key=secret).json()["usage"]["total_tokens"]
    answers: list[int] = []
    with counting_client(service, answers, key=secret) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(**LONG)
        assert caught.value.code == "insufficient_quota"
        assert answers == [429]
        assert client.chat.completions.create(**BRIEF).usage
    reply = post(service, LONG, key=secret)
    error = error_of(reply, 429, "insufficient_quota")
    assert reply.headers["x-should-retry"] == "false"
    assert "retry-after" not in reply.headers
    assert f"120 tokens a {period}, of which {2 * used} tokens are used" in error["message"]


def test_b14_when_the_wait_would_be_too_long_there_is_429_with_the_wait(service: Service) -> None:
    running = "deeprequest_num_requests_running"
    fillers = [opened(service, COUNT_TO_150) for _ in range(MOST_RUNNING)]
    try:
        assert eventually(lambda: service.metric(running) == MOST_RUNNING)
        reply = post(service, BRIEF, headers=IMPATIENT)
        error_of(reply, 429, "overloaded")
        assert 1 <= int(reply.headers["retry-after"]) <= 120
    finally:
        for filler in fillers:
            filler.close()
    assert eventually(lambda: is_idle(service))


def test_b14_a05_without_a_rank_there_is_503_until_it_is_back_and_the_sdk_waits_for_it(
    service: Service,
) -> None:
    (replica,) = service.cli("status")["replicas"]
    answers: list[int] = []
    try:
        os.kill(replica["ranks"][-1]["pid"], signal.SIGKILL)
        assert eventually(lambda: service.get("/ready")[0] == 503)
        error_of(get(service, "/ready"), 503, "no_replica")
        reply = post(service, BRIEF, headers=IMPATIENT)
        error_of(reply, 503, "no_replica")
        assert 1 <= int(reply.headers["retry-after"]) <= 120
        with counting_client(service, answers, max_retries=20) as client:
            assert client.chat.completions.create(**BRIEF, extra_headers=IMPATIENT).choices
        assert service.get("/ready")[0] == 200
    finally:
        service.wait_until_ready()
    assert 503 in answers
    assert answers[-1] == 200


@contextlib.contextmanager
def service_with_own_redis(folder: Path, **settings: str) -> Iterator[tuple[Service, RedisServer]]:
    small = {"DEEPREQUEST_ENGINE__TENSOR_PARALLEL_SIZE": "1"}
    with (
        RedisServer(folder / "redis") as redis,
        running_service(small | settings | {"DEEPREQUEST_REDIS_URL": redis.url}) as service,
    ):
        assert redis.pid is not None
        yield service, redis


def unavailable(reply: httpx.Response) -> bool:
    if reply.status_code == 200:
        return False
    error_of(reply, 503, "admission_unavailable")
    assert int(reply.headers["retry-after"]) >= 1
    return True


def test_b16_closed_without_redis_there_is_503_until_it_answers_again(tmp_path: Path) -> None:
    closed = {"DEEPREQUEST_ADMISSION__ON_OUTAGE": "closed"}
    with service_with_own_redis(tmp_path, **closed) as (other, redis):

        def refuses() -> bool:
            return unavailable(post(other, BRIEF))

        def serves() -> bool:
            return post(other, BRIEF).status_code == 200

        assert serves()
        os.kill(redis.pid or 0, signal.SIGSTOP)
        assert eventually(refuses)
        assert other.get("/health")[0] == 200
        assert other.get("/ready")[0] == 503
        assert eventually(lambda: get(other, "/v1/models").status_code == 503)
        os.kill(redis.pid or 0, signal.SIGCONT)
        assert eventually(serves)
        redis.stop()
        assert eventually(refuses)
        redis.start()
        assert eventually(serves)


def test_b16_degraded_known_keys_are_served_without_redis_and_no_others(tmp_path: Path) -> None:
    with service_with_own_redis(tmp_path) as (other, redis):
        stranger = other.cli("keys", "create", "--tenant", "late")["secret"]
        assert post(other, BRIEF).status_code == 200
        os.kill(redis.pid or 0, signal.SIGSTOP)
        try:
            for _ in range(5):
                reply = post(other, BRIEF)
                assert reply.status_code == 200, reply.text
            assert unavailable(post(other, BRIEF, key=stranger))
            assert json.loads(other.get("/ready")[1]) == {"status": "degraded", "replicas": 1}
            assert other.metric("deeprequest_admission_degraded") == 1
            assert other.metric("deeprequest_admitted_alone_total") >= 4
        finally:
            os.kill(redis.pid or 0, signal.SIGCONT)
        assert eventually(lambda: other.metric("deeprequest_admission_degraded") == 0)
        assert eventually(lambda: other.metric("deeprequest_journal_bytes") == 0)
        assert eventually(lambda: post(other, BRIEF, key=stranger).status_code == 200)
        assert json.loads(other.get("/ready")[1])["status"] == "ready"


def test_b15_one_keys_burst_over_two_ingresses_is_exact_and_touches_nobody_else(
    service: Service,
) -> None:
    bound = service.cli("keys", "create", "--tenant", "b15a", "--rpm", "7")["secret"]
    free = service.cli("keys", "create", "--tenant", "b15b")["secret"]
    with ThreadPoolExecutor(24) as pool:
        burst = [pool.submit(post, service, BRIEF, key=bound) for _ in range(20)]
        others = [pool.submit(post, service, BRIEF, key=free) for _ in range(4)]
    statuses = [job.result().status_code for job in burst]
    assert (statuses.count(200), statuses.count(429)) == (7, 13)
    assert [job.result().status_code for job in others] == [200] * 4


def test_b17_every_response_has_one_request_id_the_clients_if_it_is_sane(
    service: Service, client: openai.OpenAI
) -> None:
    with streaming(service, BRIEF, headers={"x-request-id": "mine-1"}) as reply:
        reply.read()
    assert reply.headers.get_list("x-request-id") == ["mine-1"]
    for sent, echoed in (("a.b:c_d-1", True), ("bad id", False), ("x" * 129, False)):
        for body in (BRIEF, b"{"):
            reply = post(service, body, headers={"x-request-id": sent})
            (found,) = reply.headers.get_list("x-request-id")
            assert (found == sent) == echoed
    for path in ("/health", "/nope", "/v1/models"):
        assert httpx.get(service.url + path).headers["x-request-id"]
    assert client.chat.completions.create(**BRIEF)._request_id
