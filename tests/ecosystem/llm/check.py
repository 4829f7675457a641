"""llm, the command line tool, told of the service by its extra-openai-models.yaml."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.ecosystem.contract import (
    API_KEY,
    BASE_URL,
    MODEL,
    NEXT_QUESTION,
    PERSON,
    PERSON_QUESTION,
    PERSON_SCHEMA,
    QUESTION,
    WRONG_KEY,
    answers,
    remembers,
    same,
    tell,
    thoughts_in_text,
)

USER_DIR = Path.home() / "llm"
ENTRY = {
    "model_id": "r1",
    "model_name": MODEL,
    "api_base": BASE_URL,
    "api_key_name": "deeprequest",
    "supports_schema": True,
}


def set_up() -> None:
    USER_DIR.mkdir()
    (USER_DIR / "extra-openai-models.yaml").write_text(json.dumps([ENTRY]))
    (USER_DIR / "keys.json").write_text(json.dumps({"deeprequest": API_KEY}))


def llm(*arguments: str) -> Any:
    """`llm prompt` with a model, greedily; its result."""
    command = [str(Path(sys.executable).with_name("llm")), "prompt", *arguments]
    options = ["--model", "r1", "--option", "temperature", "0", "--option", "max_tokens", "300"]
    variables = os.environ | {"LLM_USER_PATH": str(USER_DIR)}
    return subprocess.run(
        [*command, *options], env=variables, capture_output=True, text=True, check=False
    )


def chat() -> None:
    answers(llm(QUESTION, "--no-stream").stdout)


def stream() -> None:
    answers(llm(QUESTION).stdout)


def reasoning() -> str:
    return thoughts_in_text(llm(QUESTION, "--no-stream").stdout)


def reasoning_streamed() -> str:
    return thoughts_in_text(llm(QUESTION).stdout)


def usage() -> None:
    told = llm(QUESTION, "--usage").stderr
    assert '"reasoning_tokens": ' in told, told


def json_schema() -> None:
    told = llm(PERSON_QUESTION, "--schema", json.dumps(PERSON_SCHEMA))
    same(json.loads(told.stdout), PERSON)


def wrong_key() -> None:
    told = llm(QUESTION, "--key", WRONG_KEY)
    assert told.returncode
    assert "Incorrect API key provided" in told.stderr, told.stderr


def turns() -> None:
    answers(llm(QUESTION).stdout)
    remembers(llm(NEXT_QUESTION, "--continue").stdout)


set_up()
tell(
    "llm",
    "llm",
    [chat, stream, reasoning, reasoning_streamed, usage, json_schema, wrong_key, turns],
    "an entry in `extra-openai-models.yaml` with `supports_schema: true`; thoughts are in the text",
)
