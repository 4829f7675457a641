from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from serve_app.tenancy.key_defaults import KeyDefaults
from serve_app.tenancy.key_yaml import write_book
from serve_app.tenancy.keys import ApiKey, KeyBook, Tenant
from serve_app.tenancy.limiter import Limits
from serve_app.tenancy.publishing import CHUNK, publish, running_version
from serve_app.tenancy.refusals import Unauthorized
from tests.serve_app.tenancy.world import World, until

pytestmark = pytest.mark.anyio


async def held(world: World, name: str, field: str) -> Any:
    return (await world.record(name)).get(field)


async def audited(world: World) -> list[dict[str, str]]:
    entries = await world.store.command("XRANGE", f"{world.store.prefix}aud", "-", "+")
    return [fields for _, fields in entries]


async def test_an_older_book_never_replaces_a_newer_one(world: World) -> None:
    created = await world.key()
    old = world.keys.read()
    world.keys.revoke(created.key.id)
    await world.publish()
    published = await publish(world.store, old)
    assert (published.version, published.changed) == (2, 0)
    assert await held(world, f"key:{created.key.digest}", "status") == "revoked"
    assert await running_version(world.store) == 2


async def test_many_keys_are_loaded_and_the_epoch_comes_last(world: World) -> None:
    number = 2 * CHUNK + 10
    for _ in range(number):
        created = world.keys.create("acme")
    first = await publish(world.store, world.keys.read())
    again = await publish(world.store, world.keys.read())
    assert (again.epoch, first.changed, again.changed) == (first.epoch, number, 0)
    reply = await world.store.run("who", created.key.digest)
    assert reply[:3] == ["ok", created.key.id, "acme"]
    assert await world.raw("XLEN", "aud") == number


async def test_a_key_tells_what_it_may_do(world: World) -> None:
    told = KeyDefaults(reasoning_format="split", answer_reserve=True)

    def shape(key: ApiKey) -> ApiKey:
        return replace(key, scopes=("usage", "admin"), models=("m/1", "m2"))

    plain = world.keys.create("acme")
    shaped = world.keys.create("acme", defaults=told, shape=shape)
    await world.publish()
    queue = await world.ingress()
    found = [await queue.identify(one.secret) for one in (plain, shaped)]
    assert [identity.defaults for identity in found] == [KeyDefaults(), told]
    assert [i.scopes for i in found] == [("inference", "usage"), ("usage", "admin")]
    assert [i.may_use("m2") for i in found] == [True, True]
    assert [i.may_use("m") for i in found] == [True, False]


async def test_the_audit_says_who_changed_what(world: World) -> None:
    await world.publish()
    created = await world.key(rpm=5)
    world.keys.change(created.key.id, lambda key: replace(key, limits=Limits(rpm=6)))
    await world.publish()
    world.keys.rotate(created.key.id, 60)
    await world.publish()
    world.keys.set_tenant("acme", Limits(tpm=100), weight=2)
    await world.publish()
    book = world.keys.read()
    tenants = {"acme": replace(book.tenants["acme"], weight=4), "bolt": Tenant(weight=5)}
    world.keys.path.write_text(write_book(replace(book, tenants=tenants)))  # by hand
    await world.publish()
    await publish(world.store, KeyBook(version=99))
    entries = [(e["op"], e["by"], e["kind"], e["name"]) for e in await audited(world)]
    of_key = ("key", created.key.id)
    assert entries == [
        ("create", "tests", *of_key),
        ("change", "tests", *of_key),
        ("rotate", "tests", *of_key),
        ("set", "tests", "ten", "acme"),
        ("edit", "file", "ten", "acme"),
        ("add", "file", "ten", "bolt"),
        ("gone", "file", *of_key),
        ("gone", "file", "ten", "acme"),
        ("gone", "file", "ten", "bolt"),
    ]
    changes = [set(e["changes"].split()) for e in await audited(world)]
    assert {"rpm=5", "ten=acme", "class=interactive"} <= changes[0]
    assert changes[1] == {"rpm=6"}
    assert {"tpm=100", "weight=2"} <= changes[3]
    assert (changes[4], changes[-1]) == ({"weight=4"}, set())


async def test_a_rotated_secret_ends_with_its_overlap(world: World) -> None:
    created = await world.key()
    world.keys.rotate(created.key.id, overlap_s=0)
    second = world.keys.rotate(created.key.id, overlap_s=3600)
    await world.publish()
    queue = await world.ingress()
    with pytest.raises(Unauthorized) as refused:
        await queue.identify(created.secret)
    assert refused.value.reason == "expired"
    assert (await queue.identify(second.secret)).key_id == created.key.id
    world.keys.revoke(created.key.id)
    await world.publish()
    for old in world.keys.read().keys[0].old_secrets:
        assert await held(world, f"key:{old.digest}", "status") == "revoked"


async def test_limits_of_an_old_secret_are_those_of_its_key(world: World) -> None:
    created, _ = await world.key(rpm=2), await world.replica()
    rotated = world.keys.rotate(created.key.id, overlap_s=3600)
    await world.publish()
    queue = await world.ingress()
    await queue.admit(world.request(created))
    ticket = await queue.admit(world.request(rotated))
    assert ticket.figures.requests is not None
    assert ticket.figures.requests.remaining == 0


async def test_an_edit_of_the_file_is_seen_and_a_broken_one_changes_nothing(world: World) -> None:
    created = await world.key(rpm=5)
    queues = [await world.ingress() for _ in range(2)]
    text = world.keys.path.read_text()
    world.keys.path.write_text(text.replace("rpm: 5", "rpm: five"))
    world.keys.path.write_text(text.replace("rpm: 5", "rpm: 9"))

    async def limit() -> int:
        figures = [(await q.identify(created.secret, fresh=True)).figures for q in queues]
        assert all(one.requests is not None for one in figures)
        return min(one.requests.limit for one in figures if one.requests)

    async def seen() -> bool:
        return await limit() == 9

    await until(seen)
    world.keys.path.write_text("version: x")
    await queues[0]._session.beat()
    assert await limit() == 9


async def test_an_empty_redis_is_filled_again_and_the_audit_says_so(world: World) -> None:
    created = await world.key()
    queue = await world.ingress()
    await world.store.command("FLUSHALL")
    assert (await queue.identify(created.secret, fresh=True)).key_id == created.key.id
    assert [entry["op"] for entry in await audited(world)] == ["load"]


async def test_records_of_an_earlier_release_give_way(world: World) -> None:
    created = await world.key()
    name = f"{world.store.prefix}key:{created.key.digest}"
    await world.store.command("DEL", name)
    await world.store.command("HSET", name, "id", created.key.id, "print", "old")
    await world.publish()
    queue = await world.ingress()
    assert (await queue.identify(created.secret, fresh=True)).key_id == created.key.id


async def test_class_ceilings_and_budgets_of_money_reach_the_record(world: World) -> None:
    created = await world.key(money_per_day=7, money_per_month=9)
    name = f"key:{created.key.digest}"
    assert await held(world, name, "class") == "interactive"
    world.keys.change_tenant("acme", lambda tenant: replace(tenant, max_class="batch"))
    await world.publish()
    fields = [await held(world, name, field) for field in ("class", "daymoney", "monmoney")]
    assert fields == ["batch", 7, 9]


async def test_no_secret_is_anywhere_in_redis(world: World) -> None:
    created = await world.key(rpm=100)
    await world.replica()
    queue = await world.ingress()
    identity = await queue.identify(created.secret)
    ticket = await queue.admit(world.request(created))
    await ticket.settle(prompt_tokens=1, output_tokens=1)
    assert identity.key_id == created.key.id
    import redis

    client = redis.Redis(unix_socket_path=world.url.removeprefix("unix://"))
    client.config_set("save", "")
    client.save()
    folder = Path(world.url.removeprefix("unix://")).parent
    body = created.secret.split("-")[2].encode()
    for file in folder.iterdir():
        if file.is_file():
            content = file.read_bytes()
            assert body not in content, file
            assert world.pepper not in content, file
    assert created.key.digest.encode() in (folder / "appendonly.aof").read_bytes()


def test_records_say_nothing_of_secrets() -> None:
    fields = {field.name for kind in (ApiKey, Tenant) for field in msgspec.structs.fields(kind)}
    assert "secret" not in fields
