"""KeyDefaults: what a key's requests mean where they do not say.

Owns the settings and how Redis holds them. Refuses to know what they do.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec


class KeyDefaults(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Settings of a key that each request may override."""

    reasoning_format: Literal["think_tags", "split", "hidden"] | None = None
    """None: as the API's default."""
    answer_reserve: bool = False

    def fields(self) -> dict[str, str | int]:
        """As the scripts' hashes spell them."""
        return {"shown": self.reasoning_format or "", "reserve": int(self.answer_reserve)}


def read_defaults(reply: Sequence[Any]) -> KeyDefaults:
    """From a script's two values."""
    shown, reserve = reply
    return KeyDefaults(reasoning_format=shown or None, answer_reserve=bool(reserve))
