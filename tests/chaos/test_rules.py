"""Two configurations at work at once, as while an update rolls through."""

import asyncio
from functools import partial
from pathlib import Path

import msgspec
import pytest

from tests.chaos.scene import Scene, scene_in
from tests.serve_app.tenancy.world import until

pytestmark = pytest.mark.anyio
OLD, NEW = 80, 50
"""Percent of the KV cache that batch may fill, by either."""


async def batch_ceiling(scene: Scene) -> int:
    held = await scene.world.raw("GET", "rules")
    return int(msgspec.msgpack.decode(held)[3][1]) if held else 0


async def reloaded(scene: Scene, ingress: str) -> bool:
    """Whether it has told its rules and was refused."""
    return "rules_are_older" in (scene.folder / ingress).read_text()


async def test_an_older_configuration_never_replaces_the_rules_of_a_newer_one(
    tmp_path: Path,
) -> None:
    async with scene_in(tmp_path, kv=1000) as scene:
        idle = {"secrets": ["none"], "workers": 0, "lasts_s": 600.0, "timeout_s": 5.0}
        await scene.ingress(**idle, rules_version=1, batch_ceiling=OLD / 100)
        assert await batch_ceiling(scene) == OLD
        await scene.ingress(**idle, rules_version=2, batch_ceiling=NEW / 100)
        assert await batch_ceiling(scene) == NEW
        await scene.ingress(**idle, rules_version=1, batch_ceiling=OLD / 100)  # restarted late
        assert await batch_ceiling(scene) == NEW
        await scene.world.key()  # the file has changed: all tell their rules again
        await until(partial(reloaded, scene, "i0.log"))
        assert await batch_ceiling(scene) == NEW
        await scene.world.store.command("FLUSHALL")

        async def filled_again() -> bool:
            return await batch_ceiling(scene) == NEW

        await until(filled_again)
        await asyncio.sleep(2.0)  # whoever was last has told its own by now
        assert await batch_ceiling(scene) == NEW
