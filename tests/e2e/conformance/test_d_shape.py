"""Checklist D: the shape of an answer, the examples of the documents, several choices."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.conformance.wire import MODEL, asked, post
from tests.e2e.service import ROOT, Service

pytestmark = pytest.mark.e2e
QUICKSTART_URL = "http://127.0.0.1:8000"


def test_d37_an_answer_has_the_shape_of_a_chat_completion(service: Service) -> None:
    began = int(time.time())
    body = post(service, asked()).json()
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"
    assert began <= body["created"] <= time.time()
    assert body["model"] == MODEL
    (choice,) = body["choices"]
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    message = choice["message"]
    assert (message["role"], message["refusal"]) == ("assistant", None)
    assert isinstance(message["content"], str)
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= 0
    assert usage["completion_tokens_details"]["reasoning_tokens"] > 0


def test_d38_the_two_examples_of_the_readme_run_as_they_stand(
    service: Service, tmp_path: Path
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert program.count(QUICKSTART_URL) == 1
    (tmp_path / ".deeprequest").symlink_to(service.state_dir)
    done = subprocess.run(
        [sys.executable, "-c", program.replace(QUICKSTART_URL, service.url)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    traces = done.stdout.split("<think>\n")
    assert traces[0] == ""
    assert len(traces) == 3
    for trace in traces[1:]:
        thoughts, answer = trace.split("</think>")
        assert thoughts.strip()
        assert answer.strip()


def test_d46_four_choices_are_distinct_and_the_prompt_counts_once(service: Service) -> None:
    body = asked(temperature=2, top_p=1, seed=11, max_tokens=40)
    (one,) = post(service, body).json()["choices"]
    reply = post(service, body | {"n": 4}).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2, 3]
    assert len({choice["message"]["content"] for choice in reply["choices"]}) == 4
    assert reply["choices"][0]["message"] == one["message"]
    tokens = post(service, body, path="/tokenize").json()["count"]
    assert reply["usage"]["prompt_tokens"] == tokens
    again = post(service, body | {"n": 4}).json()
    assert again["choices"] == reply["choices"]
