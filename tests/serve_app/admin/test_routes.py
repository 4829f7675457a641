"""The admin API as a client sees it: a real file and a real Redis behind it."""

import time
from typing import Any

import httpx2 as httpx
import pytest

from serve_app.tenancy.keys import KeyBook
from serve_app.tenancy.publishing import publish
from serve_app.tenancy.secret import SECRET
from tests.serve_app.site import MODEL_ID, Site, error_of

pytestmark = pytest.mark.anyio
KEYS, TENANTS = "/admin/v1/keys", "/admin/v1/tenants"


class Admin:
    """A client with a key for the admin API."""

    def __init__(self, site: Site, key_id: str, secret: str) -> None:
        self._site, self.key_id = site, key_id
        self.headers = {"authorization": f"Bearer {secret}"}

    async def ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        return await self._site.client.request(method, path, json=body, headers=self.headers)

    async def told(self, method: str, path: str, body: Any = None) -> Any:
        reply = await self.ask(method, path, body)
        assert reply.status_code == 200, reply.text
        assert reply.headers["cache-control"] == "no-store"
        return reply.json()


@pytest.fixture
async def admin(site: Site) -> Admin:
    created = await site.world.key_for("admin")
    return Admin(site, created.key.id, created.secret)


async def model_status(site: Site, secret: str) -> int:
    headers = {"authorization": f"Bearer {secret}"}
    return (await site.client.get(f"/v1/models/{MODEL_ID}", headers=headers)).status_code


async def test_a_key_is_made_shown_changed_rotated_and_revoked(site: Site, admin: Admin) -> None:
    wish = {
        "tenant": "acme",
        "label": "ci",
        "rpm": 5,
        "scopes": ["inference"],
        "max_class": "batch",
    }
    made = await admin.told("POST", KEYS, wish)
    assert set(made) == {"secret", "key"}
    assert SECRET.fullmatch(made["secret"])
    key = made["key"]
    assert {name: key[name] for name in wish} == wish
    assert await model_status(site, made["secret"]) == 200
    path = f"{KEYS}/{key['id']}"
    assert await admin.told("GET", path) == key
    changed = await admin.told("PATCH", path, {"tpm": 900, "models": ["other"]})
    assert (changed["rpm"], changed["tpm"], changed["models"]) == (5, 900, ["other"])
    assert (changed["changed"]["op"], changed["changed"]["by"]) == ("limits", f"key:{admin.key_id}")
    rotated = await admin.told("POST", f"{path}/rotate", {"overlap_s": 60})
    assert rotated["secret"] != made["secret"]
    (ends,) = rotated["key"]["old_secrets_end_at"]
    assert abs(ends - time.time() - 60) < 30
    assert (await admin.told("DELETE", path))["status"] == "revoked"
    for secret in (made["secret"], rotated["secret"]):
        reply = await site.client.get("/v1/models", headers={"authorization": f"Bearer {secret}"})
        if secret == rotated["secret"]:  # the other may be remembered for a second
            assert reply.status_code == 401
    assert (await admin.told("GET", path))["status"] == "revoked"


async def test_no_answer_but_the_first_holds_a_secret_or_a_digest(site: Site, admin: Admin) -> None:
    made = await admin.told("POST", KEYS, {"tenant": "acme"})
    await admin.told("PATCH", f"{TENANTS}/acme", {"weight": 2})
    path = f"{KEYS}/{made['key']['id']}"
    asked = [("GET", KEYS), ("GET", path), ("GET", TENANTS)]
    asked += [("GET", "/admin/v1/audit"), ("GET", "/admin/v1/queue"), ("DELETE", path)]
    digests = [key.digest for key in site.world.keys.read().keys]
    for method, url in asked:
        text = (await admin.ask(method, url)).text
        assert made["secret"].split("-")[2] not in text
        assert not [digest for digest in digests if digest in text]


async def test_keys_are_listed_by_tenant(admin: Admin) -> None:
    for tenant in ("bolt", "bolt", "coal"):
        await admin.told("POST", KEYS, {"tenant": tenant})
    listed = (await admin.told("GET", f"{KEYS}?tenant=bolt"))["keys"]
    assert [key["tenant"] for key in listed] == ["bolt", "bolt"]
    assert len((await admin.told("GET", KEYS))["keys"]) == 4


async def test_a_tenant_is_changed_in_part(site: Site, admin: Admin) -> None:
    await admin.told("PATCH", f"{TENANTS}/bolt", {"weight": 3, "rpm": 7})
    changed = await admin.told("PATCH", f"{TENANTS}/bolt", {"max_class": "batch"})
    assert (changed["weight"], changed["rpm"], changed["max_class"]) == (3, 7, "batch")
    listed = {row["name"]: row for row in (await admin.told("GET", TENANTS))["tenants"]}
    assert listed["bolt"] == changed
    assert listed["acme"]["active_keys"] == 1
    assert site.world.keys.read().tenants["bolt"].weight == 3


async def test_the_audit_names_the_key_that_changed_something(admin: Admin) -> None:
    made = (await admin.told("POST", KEYS, {"tenant": "acme", "rpm": 3}))["key"]
    await admin.told("DELETE", f"{KEYS}/{made['id']}")
    newest, before = (await admin.told("GET", "/admin/v1/audit?limit=2"))["audit"]
    assert (newest["op"], newest["by"], newest["name"]) == (
        "revoke",
        f"key:{admin.key_id}",
        made["id"],
    )
    assert (newest["changes"], before["op"]) == (["status=revoked"], "create")
    assert "rpm=3" in before["changes"]
    assert (await admin.ask("GET", "/admin/v1/audit?limit=0")).status_code == 400


async def test_the_queue_is_shown(site: Site, admin: Admin) -> None:
    await site.world.replica()
    view = await admin.told("GET", "/admin/v1/queue")
    assert view == {"running": 0, "waiting": 0, "replicas": 1, "tenants": []}


@pytest.mark.parametrize("scopes", [(), ("inference", "usage")])
async def test_without_the_scope_nothing_is_told_and_nothing_changed(
    site: Site, scopes: tuple[Any, ...]
) -> None:
    created = await site.world.key_for(*scopes)
    before = site.world.keys.read()
    headers = {"authorization": f"Bearer {created.secret}"}
    paths = [
        ("GET", KEYS),
        ("POST", KEYS),
        ("PATCH", f"{TENANTS}/acme"),
        ("GET", "/admin/v1/audit"),
    ]
    for method, path in [*paths, ("DELETE", f"{KEYS}/{created.key.id}")]:
        reply = await site.client.request(method, path, headers=headers)
        assert reply.status_code == 403
        assert "admin scope" in error_of(reply)["message"]
    assert site.world.keys.read() == before


async def test_an_admin_key_that_lost_its_scope_is_refused_at_once(
    site: Site, admin: Admin
) -> None:
    assert await admin.told("GET", KEYS)
    path = f"{KEYS}/{admin.key_id}"
    await admin.told("PATCH", path, {"scopes": ["inference"]})
    assert (await admin.ask("GET", KEYS)).status_code == 403


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("POST", KEYS, {}, "tenant"),
        ("POST", KEYS, {"tenant": "a b"}, None),
        ("POST", KEYS, {"tenant": "a", "rpmm": 3}, None),
        ("POST", KEYS, {"tenant": "a", "rpm": "3"}, "rpm"),
        ("POST", KEYS, {"tenant": "a", "rpm": 3.5}, "rpm"),
        ("POST", KEYS, {"tenant": "a", "rpm": True}, "rpm"),
        ("POST", KEYS, {"tenant": "a", "rpm": -1}, "rpm"),
        ("POST", KEYS, {"tenant": "a", "rpm": 10**30}, "rpm"),
        ("POST", KEYS, {"tenant": "a", "burst_s": 0}, "burst_s"),
        ("POST", KEYS, {"tenant": "a", "scopes": ["root"]}, "scopes"),
        ("POST", KEYS, {"tenant": "a", "scopes": "admin"}, "scopes"),
        ("POST", KEYS, {"tenant": "a", "models": ["a,b"]}, "models"),
        ("POST", KEYS, {"tenant": "a", "max_class": "first"}, "max_class"),
        ("POST", KEYS, {"tenant": "a", "label": "x" * 257}, "label"),
        ("POST", KEYS, {"tenant": "a", "expires_at": -1}, "expires_at"),
        ("POST", KEYS, [], None),
        ("PATCH", f"{TENANTS}/acme", {"weight": 0}, "weight"),
        ("PATCH", f"{TENANTS}/acme", {"weight": 101}, "weight"),
        ("PATCH", f"{TENANTS}/a%20b", {"weight": 2}, None),
        ("POST", f"{KEYS}/{{id}}/rotate", {"overlap_s": -1}, "overlap_s"),
        ("POST", f"{KEYS}/{{id}}/rotate", {"overlap_s": 10**9}, "overlap_s"),
    ],
)
async def test_what_is_wrong_is_named_and_nothing_is_changed(
    site: Site, admin: Admin, method: str, path: str, body: Any, param: str | None
) -> None:
    before = site.world.keys.path.read_bytes()
    reply = await admin.ask(method, path.format(id=admin.key_id), body)
    assert reply.status_code == 400
    error = error_of(reply)
    assert error["param"] == param, error
    assert "root" not in error["message"]
    assert site.world.keys.path.read_bytes() == before


async def test_an_unknown_key_is_404(admin: Admin) -> None:
    for method, path in (("GET", ""), ("PATCH", ""), ("DELETE", ""), ("POST", "/rotate")):
        reply = await admin.ask(method, f"{KEYS}/nosuchid{path}", {} if method != "GET" else None)
        assert reply.status_code == 404
        assert error_of(reply)["code"] == "key_not_found"


async def test_a_revoked_key_cannot_be_changed(admin: Admin) -> None:
    made = (await admin.told("POST", KEYS, {"tenant": "acme"}))["key"]
    path = f"{KEYS}/{made['id']}"
    await admin.told("DELETE", path)
    reply = await admin.ask("PATCH", path, {"rpm": 1})
    assert reply.status_code == 400
    assert "make a new one" in error_of(reply)["message"]


async def test_a_file_that_is_not_the_source_is_neither_shown_nor_changed(
    site: Site, admin: Admin
) -> None:
    newer = site.world.keys.read()
    await publish(site.world.store, KeyBook(version=99, keys=newer.keys))
    before = site.world.keys.path.read_bytes()
    for method, path, body in (("GET", KEYS, None), ("POST", KEYS, {"tenant": "acme"})):
        reply = await admin.ask(method, path, body)
        assert reply.status_code == 409
        error = error_of(reply)
        assert error["code"] == "tenants_file_unusable"
        assert str(site.world.keys.path) not in error["message"]
    assert site.world.keys.path.read_bytes() == before
