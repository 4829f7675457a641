"""guidellm, the load generator: its synthetic prompts through chats and raw prompts, to the end."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.ecosystem.contract import (
    API_KEY,
    AS_REASONING,
    BASE_URL,
    MODEL,
    SPLIT,
    WRONG_KEY,
    same,
    tell,
)
from tests.ecosystem.demo_tokenizer import tokenizer_folder

TOKENIZER = tokenizer_folder()
REQUESTS, STREAMS, PROMPT_TOKENS, OUTPUT_TOKENS = 24, 4, 48, 32


def guidellm(name: str, key: str = API_KEY, **backend: Any) -> Any:
    """Run one benchmark to its end; the requests of its report, by what became of them."""
    report = Path.home() / f"{name}.json"
    target = {"kind": "openai_http", "target": BASE_URL, "model": MODEL, "api_key": key}
    data = {
        "kind": "synthetic_text",
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
    }
    spec = {
        "backend": {**target, **backend},
        "tokenizer": {"kind": "huggingface_auto", "model": str(TOKENIZER)},
        "data": [data],
        "profile": {"kind": "concurrent", "streams": [STREAMS]},
        "constraints": [{"kind": "max_requests", "count": REQUESTS}],
        "outputs": [{"kind": "json", "path": str(report)}],
    }
    config = Path.home() / f"{name}-config.json"
    config.write_text(json.dumps({"spec": spec}))
    command = [str(Path(sys.executable).with_name("guidellm")), "run", "--config", str(config)]
    variables = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [*command, "--disable-console-interactive"],
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(done.stdout[-1500:], done.stderr[-1500:], file=sys.stderr)
        raise AssertionError(f"exit code {done.returncode}")
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    return benchmark["requests"]


def finished(name: str, **backend: Any) -> list[Any]:
    """The requests of a benchmark, all of which have succeeded at full length."""
    requests = guidellm(name, **backend)
    same((len(requests["successful"]), len(requests["errored"])), (REQUESTS, 0))
    for request in requests["successful"]:
        same(request["output_metrics"]["text_tokens"], OUTPUT_TOKENS)
    return list(requests["successful"])


def chat() -> None:
    finished("chat", request_format="/v1/chat/completions", stream=False)


def stream() -> str:
    extras = {"body": SPLIT}
    requests = finished("stream", request_format="/v1/chat/completions", extras=extras)
    assert all(request["reasoning_output"] for request in requests), "no thoughts"
    return AS_REASONING


def raw_prompts() -> None:
    finished("raw", request_format="/v1/completions")


def wrong_key() -> None:
    requests = guidellm("nobody", WRONG_KEY)
    same(len(requests["successful"]), 0)
    assert requests["errored"], "nothing was refused"


tell(
    "guidellm",
    "guidellm",
    [chat, stream, raw_prompts, wrong_key],
    "`extras: {body: {reasoning_format: split}}` lets it tell thoughts from text",
)
