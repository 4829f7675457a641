"""Records of a pool, read and written by a test as the scripts do."""

import functools
import importlib.resources
import struct
from typing import Any

import msgspec

from serve_app.tenancy.records import DECLARED, Layout, layout_of

PARTS = {"pool": "common", "req": "common", "mt": "meter"}
"""Which part of the scripts declares the record of each kind of key."""


@functools.cache
def layouts() -> dict[str, Layout]:
    """Of each kind of key that holds a record."""
    folder = importlib.resources.files("serve_app.tenancy") / "scripts"
    found = {}
    for part in {*PARTS.values()}:
        for declared in DECLARED.finditer((folder / f"{part}.lua").read_text()):
            layout = layout_of(declared[0])
            assert layout is not None
            found[layout.packer] = layout
    return {"pool": found["pack_pool"], "req": found["pack_request"], "mt": found["pack_meter"]}


def unpack(kind: str, packed: bytes) -> dict[str, Any]:
    """All fields by name; of a key or tenant those that are not 0 (MessagePack)."""
    if kind not in PARTS:
        return dict(msgspec.msgpack.decode(packed))
    layout, at = layouts()[kind], 1
    fields: dict[str, Any] = {}
    assert packed[0] == len(layout.fields)
    for name in layout.fields:
        if name in layout.texts:
            end = packed.index(0, at)
            fields[name], at = packed[at:end].decode(), end + 1
        else:
            (number,) = struct.unpack_from("<d", packed, at)
            fields[name], at = int(number), at + 8
    assert at == len(packed)
    return fields


def pack(kind: str, fields: dict[str, Any]) -> bytes:
    """The rest is 0 or empty."""
    layout = layouts()[kind]
    assert fields.keys() <= {*layout.fields}
    parts = [
        str(fields.get(name, "")).encode() + b"\0"
        if name in layout.texts
        else struct.pack("<d", fields.get(name, 0))
        for name in layout.fields
    ]
    return bytes([len(parts)]) + b"".join(parts)
