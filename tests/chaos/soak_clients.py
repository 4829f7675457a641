"""Clients of a soak: they ask, leave in the middle, and remember every token that they were given.

Owns the load and what came of it. A client counts what `usage` says in each chunk, so what it saw
of a stream that it left is known to the token. Knows no Redis and no process.
"""

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from typing import Any

import httpx2 as httpx
import msgspec

CHAT, KEYS = "/v1/chat/completions", "/admin/v1/keys"
SILENCE_S = 30.0
"""A stream without a byte for so long hangs."""


class Answer(msgspec.Struct):
    """What one client was given."""

    prompt: int = 0
    output: int = 0
    most: int = 0
    whole: bool = False
    """It ended as streams should, so `prompt` and `output` are what was used."""


class Clients:
    """Some clients on one service, with keys that come and go."""

    def __init__(self, url: str, admin_secret: str, seed: int) -> None:
        self._url, self._random = url, random.Random(seed)
        self._admin = {"authorization": f"Bearer {admin_secret}"}
        self._keys: dict[str, list[str]] = {}
        self.answers: dict[str, Answer] = {}
        """By request id."""
        self.outcomes: Counter[str] = Counter()
        self.key_changes: Counter[str] = Counter()
        self.longest_s = 0.0
        """That a client waited for its first byte."""

    async def run(self, count: int, lasts_s: float) -> None:
        """`count` clients and one administrator, for so long."""
        ends_at = time.monotonic() + lasts_s
        limits = httpx.Limits(max_connections=count + 8)
        async with httpx.AsyncClient(
            base_url=self._url, timeout=SILENCE_S, limits=limits
        ) as client:
            while not self._keys:
                await self._change_keys(client)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._administer(client, ends_at))
                for _ in range(count):
                    group.create_task(self._ask_on(client, ends_at))

    async def _ask_on(self, client: httpx.AsyncClient, ends_at: float) -> None:
        while time.monotonic() < ends_at:
            secrets = self._random.choice([*self._keys.values()])
            self.outcomes[await self._ask(client, secrets[-1])] += 1
            await asyncio.sleep(self._random.uniform(0.0, 0.2))

    async def _ask(self, client: httpx.AsyncClient, secret: str) -> str:
        most = self._random.randint(1, 150)
        leaves_after = self._random.choice([None, None, self._random.randint(0, most)])
        body = {
            "model": "deepseek-r1-32b",
            "messages": [{"role": "user", "content": f"Count from 1 to {most}"}],
            "max_tokens": most,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
            "ignore_eos": True,
        }
        headers = {"authorization": f"Bearer {secret}"}
        began = time.monotonic()
        try:
            async with client.stream("POST", CHAT, json=body, headers=headers) as reply:
                self.longest_s = max(self.longest_s, time.monotonic() - began)
                if reply.status_code != 200:
                    return str(reply.status_code)
                return await self._read(reply, most, leaves_after)
        except httpx.ReadTimeout:
            return "hung"
        except httpx.TransportError:
            return "broken"

    async def _read(self, reply: httpx.Response, most: int, leaves_after: int | None) -> str:
        answer = Answer(most=most)
        async for line in reply.aiter_lines():
            if line == "data: [DONE]":
                answer.whole = True
                return "whole"
            if not line.startswith("data: "):
                continue
            chunk: dict[str, Any] = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                return f"ended: {chunk['error']['code']}"
            self.answers[chunk["id"]] = answer
            if usage := chunk.get("usage"):
                answer.prompt, answer.output = usage["prompt_tokens"], usage["completion_tokens"]
            if leaves_after is not None and answer.output >= leaves_after:
                return "left"
        return "broken"

    async def _administer(self, client: httpx.AsyncClient, ends_at: float) -> None:
        while time.monotonic() < ends_at:
            await self._change_keys(client)
            await asyncio.sleep(self._random.uniform(1.0, 3.0))

    async def _change_keys(self, client: httpx.AsyncClient) -> None:
        """Makes a key, or changes, rotates or revokes one; some keys are always there."""
        what = self._random.choice(["limits", "rotate", "make", "revoke"])
        if len(self._keys) < 4:
            what = "make"
        key_id = self._random.choice([*self._keys]) if self._keys else ""
        with contextlib.suppress(httpx.TransportError):
            reply = await self._change(client, what, key_id)
            self.key_changes[what if reply.status_code == 200 else str(reply.status_code)] += 1
            if reply.status_code != 200:
                return
            told = reply.json()
            if what == "make":
                self._keys[told["key"]["id"]] = [told["secret"]]
            elif what == "rotate":
                self._keys[key_id].append(told["secret"])
            elif what == "revoke":
                self._keys.pop(key_id)

    async def _change(self, client: httpx.AsyncClient, what: str, key_id: str) -> httpx.Response:
        path = f"{KEYS}/{key_id}"
        if what == "make":
            tenant = self._random.choice(["acme", "bolt", "coal"])
            wish = {"tenant": tenant, "rpm": 6000, "concurrency": self._random.randint(2, 8)}
            return await client.post(KEYS, json=wish, headers=self._admin)
        if what == "limits":
            limits = {"tpm": self._random.randint(50_000, 500_000)}
            return await client.patch(path, json=limits, headers=self._admin)
        if what == "rotate":
            overlap = {"overlap_s": self._random.randint(0, 2)}
            return await client.post(f"{path}/rotate", json=overlap, headers=self._admin)
        return await client.delete(path, headers=self._admin)
