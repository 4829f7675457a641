"""Checklist G: what becomes of requests whose clients, owners or servers give them up."""

import itertools
import signal
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2 as httpx
import openai
import psutil
import pytest

from tests.e2e.conformance.wire import (
    CHAT,
    COUNT_TO_150,
    MODEL,
    asked,
    counted,
    error_of,
    events_of,
    eventually,
    is_idle,
    opened,
    post,
    streaming,
)
from tests.e2e.service import Service, running_service

pytestmark = pytest.mark.e2e
LONG_PROMPT = {**COUNT_TO_150, "messages": [{"role": "user", "content": "word " * 2500}]}
GENERATED = "deeprequest_generation_tokens_total"
FILLERS = 16


def test_g79_hanging_up_on_a_stream_frees_all_and_counts_what_was_made(service: Service) -> None:
    assert eventually(lambda: is_idle(service))
    before = counted(service, GENERATED)
    with streaming(service, COUNT_TO_150) as reply:
        lines = (line for line in reply.iter_lines() if line.startswith("data: "))
        events = events_of(list(itertools.islice(lines, 20)))
    assert eventually(lambda: is_idle(service), within_s=3)
    assert len(events) - 1 <= counted(service, GENERATED) - before < 1000


@pytest.mark.parametrize("body", [COUNT_TO_150, LONG_PROMPT], ids=["decoding", "prefilling"])
@pytest.mark.parametrize("wait_s", [0.0, 0.05, 0.3])
def test_g80_hanging_up_on_an_answer_in_one_piece_frees_all(
    service: Service, body: dict[str, Any], wait_s: float
) -> None:
    connection = opened(service, body)
    time.sleep(wait_s)
    connection.close()
    assert eventually(lambda: is_idle(service), within_s=5)


def test_g80_hanging_up_in_the_queue_gives_the_place_back(service: Service) -> None:
    fillers = [opened(service, COUNT_TO_150) for _ in range(FILLERS)]
    try:
        assert eventually(lambda: service.metric("deeprequest_num_requests_running") == FILLERS)
        for stream in (False, True):
            waiter = opened(service, {**COUNT_TO_150, "stream": stream})
            assert eventually(lambda: service.metric("deeprequest_queue_length") == 1)
            waiter.close()
            assert eventually(lambda: service.metric("deeprequest_queue_length") == 0)
    finally:
        for filler in fillers:
            filler.close()
    assert eventually(lambda: is_idle(service))


def test_g81_connecting_and_dropping_500_times_leaks_nothing(service: Service) -> None:
    def cycle(number: int) -> None:
        connection = opened(service, {**COUNT_TO_150, "stream": bool(number % 2)})
        time.sleep(number % 7 * 0.01)
        connection.close()

    def descriptors() -> int:
        found = psutil.Process(service.process.pid).children(recursive=True)
        return sum(child.num_fds() for child in found if child.is_running())

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(cycle, range(50)))
        assert eventually(lambda: is_idle(service))
        before = descriptors()
        list(pool.map(cycle, range(500)))
    assert eventually(lambda: is_idle(service), within_s=20)
    assert eventually(lambda: descriptors() <= before + 20, within_s=20)
    status = service.cli("status")
    assert (status["queue"]["running"], status["queue"]["waiting"]) == (0, 0)
    assert post(service, asked(max_tokens=2)).status_code == 200


def test_g82_g83_time_limits_and_the_end_of_the_service_are_told(service: Service) -> None:
    limited = {
        "DEEPREQUEST_ENGINE__TENSOR_PARALLEL_SIZE": "1",
        "DEEPREQUEST_HTTP__DEFAULT_TIMEOUT_S": "1",
    }
    with running_service(limited) as other:
        endless = {**COUNT_TO_150, "max_tokens": 3900, "n": 8}
        error_of(post(other, endless), 504, "timeout")
        with streaming(other, endless) as reply:
            lines = list(reply.iter_lines())
        assert events_of(lines)[-1]["error"]["code"] == "timeout"
        assert "data: [DONE]" not in lines
        assert eventually(lambda: is_idle(other))
        with streaming(other, endless) as reply:
            rest = reply.iter_lines()
            next(rest)
            other.process.send_signal(signal.SIGTERM)
            data = [line for line in rest if line.startswith("data: ")]
        assert "error" in events_of(data)[-1] or data[-1] == "data: [DONE]"
    with pytest.raises(httpx.ConnectError):
        httpx.get(other.url + "/health")


def named(service: Service, name: str, body: dict[str, Any], **options: Any) -> httpx.Response:
    return post(service, body, headers={"idempotency-key": name}, **options)


@pytest.mark.parametrize("stream", [False, True])
def test_g84_of_many_at_once_one_is_run_and_all_get_its_reply(
    service: Service, stream: bool
) -> None:
    name, body = uuid.uuid4().hex, asked(temperature=1.0, stream=stream, max_tokens=100)
    before = counted(service, GENERATED)

    def persistent(_: int) -> str:
        while (reply := named(service, name, body)).status_code == 409:
            assert error_of(reply, 409, "idempotency_in_progress")
            time.sleep(int(reply.headers["retry-after-ms"]) / 1000)
        assert reply.status_code == 200
        return reply.text

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(persistent, range(8)))
    made = counted(service, GENERATED) - before
    assert made <= 100
    clean = [
        "\n".join(line for line in text.splitlines() if line and not line.startswith(":"))
        for text in texts
    ]
    assert len(set(clean)) == 1


def test_g84_a_client_that_hung_up_gets_the_reply_by_asking_again(
    service: Service, client: openai.OpenAI
) -> None:
    headers = {"idempotency-key": uuid.uuid4().hex}
    request = {**asked("Count from 1 to 150", max_tokens=600), "extra_headers": headers}
    before = counted(service, GENERATED)
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).chat.completions.create(**request)
    patient = client.with_options(max_retries=8)
    replies = [patient.chat.completions.create(**request) for _ in range(2)]
    assert replies[0] == replies[1]
    usage = replies[0].usage
    assert usage is not None
    assert counted(service, GENERATED) - before == usage.completion_tokens


def test_g84_another_body_under_the_name_is_refused(service: Service) -> None:
    name = uuid.uuid4().hex
    assert named(service, name, asked(max_tokens=2)).status_code == 200
    error_of(named(service, name, asked(max_tokens=3)), 422, "idempotency_key_reused")
    again = named(service, name, asked(max_tokens=2))
    assert again.headers["idempotent-replayed"] == "true"


def test_g85_a_request_is_ended_by_its_owner_and_nobody_else(service: Service) -> None:
    stranger = service.cli("keys", "create", "--tenant", "g85")["secret"]
    counting = {"model": MODEL, "prompt": "1, 2, 3", "max_tokens": 1000, "ignore_eos": True}
    # The proxy gives the request and its end to either ingress.
    for path, body in ((CHAT, COUNT_TO_150), ("/v1/completions", counting)) * 3:
        with streaming(service, body, path=path) as reply:
            lines = (line for line in reply.iter_lines() if line.startswith("data: "))
            (first,) = events_of([next(lines)])
            url = f"{path}/{first['id']}/cancel"
            error_of(post(service, b"", path=url, key=stranger), 404, "request_not_found")
            kind = first["object"].removesuffix(".chunk")
            told = {"id": first["id"], "object": f"{kind}.cancelled", "cancelled": True}
            assert post(service, b"", path=url).json() == told
            rest = list(lines)
        assert events_of(rest)[-1]["error"]["code"] == "request_cancelled"
        assert "data: [DONE]" not in rest
    assert eventually(lambda: is_idle(service))
    error_of(post(service, b"", path=url), 404, "request_not_found")


def test_g85_a_waiting_request_can_be_ended_too(service: Service, client: openai.OpenAI) -> None:
    error_of(post(service, b"", path=f"{CHAT}/chatcmpl-nope/cancel"), 404, "request_not_found")
    with pytest.raises(openai.NotFoundError):
        client.post(f"/chat/completions/{'x' * 80}/cancel", cast_to=object)
