"""aider, asked a question from a terminal; it shows thoughts apart by itself."""

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
    QUESTION,
    WRONG_KEY,
    answers,
    tell,
)

QUIET = (
    "--no-git",
    "--no-pretty",
    "--no-check-update",
    "--no-show-model-warnings",
    "--no-show-release-notes",
    "--analytics-disable",
    "--yes-always",
)


def aider(*options: str, key: str = API_KEY) -> str:
    """What it prints to a question about no files."""
    program = str(Path(sys.executable).with_name("aider"))
    asked = ["--model", f"openai/{MODEL}", "--chat-mode", "ask", "--message", QUESTION]
    service = {"OPENAI_API_BASE": BASE_URL, "OPENAI_API_KEY": key}
    variables: dict[str, Any] = os.environ | service | {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(
        [program, *asked, *QUIET, *options],
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


def thoughts(told: str) -> str:
    """AS_REASONING, if thoughts and answer stand under headings of their own."""
    _, thoughts_on = told.split("THINKING", 1)
    thinking, answer = thoughts_on.split("ANSWER", 1)
    assert "10: y 3" in thinking, told
    answers(answer.split("Tokens:")[0])
    return AS_REASONING


def chat() -> None:
    assert "There are 3 r's" in aider("--no-stream")


def stream() -> None:
    assert "There are 3 r's" in aider()


def reasoning() -> str:
    return thoughts(aider("--no-stream"))


def reasoning_streamed() -> str:
    return thoughts(aider())


def usage() -> None:
    assert "64 received" in aider("--no-stream")


def wrong_key() -> None:
    told = aider("--no-stream", key=WRONG_KEY)
    assert "AuthenticationError" in told, told


tell(
    "aider",
    "aider-chat",
    [chat, stream, reasoning, reasoning_streamed, usage, wrong_key],
    "`--model openai/deepseek-r1-32b`; splits off `<think>` by itself",
)
