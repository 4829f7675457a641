"""The calls of one choice: pieces of its answer as deltas, and as the calls of a whole message.

Owns the ids of calls and their shape. Refuses to know the text in which they were found.
"""

import secrets
from typing import Any

from cluster.text.tool_reader import AnswerPiece


def call_delta(piece: AnswerPiece) -> dict[str, Any]:
    """The `tool_calls` of the delta for a piece of a call; its beginning carries id and name."""
    if piece.name is None:
        entry: dict[str, Any] = {"index": piece.call, "function": {"arguments": piece.arguments}}
    else:
        entry = {
            "index": piece.call,
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": piece.name, "arguments": piece.arguments},
        }
    return {"tool_calls": [entry]}


class CollectedCalls:
    """The calls of a message that is sent in one piece."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def push(self, piece: AnswerPiece) -> None:
        """Takes the next piece of a call."""
        (entry,) = call_delta(piece)["tool_calls"]
        if piece.name is None:
            self.calls[-1]["function"]["arguments"] += piece.arguments
        else:
            del entry["index"]
            self.calls.append(entry)
