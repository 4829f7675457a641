"""StopChecker: finds stop strings in a growing text and withholds what may become one.

Owns the withheld end of the text. Refuses to know tokens, reasoning and requests.

One automaton (Aho-Corasick) reads all stop strings at once. A node is the longest end of the text
so far that begins some stop string; its depth is how many characters to withhold.

    stop = ("\\n\\n", "END")      (root) --"\\n"--> 1 --"\\n"--> 2 match
                                    \\-----"E"---> 1 --"N"---> 2 --"D"--> 3 match
"""

from collections import deque


class _Node:
    """The text ends with these `depth` characters, and with no longer beginning of a stop."""

    __slots__ = ("depth", "fallback", "match", "next")

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.next: dict[str, _Node] = {}
        self.fallback: _Node | None = None
        """The next shorter end that begins a stop string; None at the root."""
        self.match: str | None = None
        """The longest stop string that is complete here."""


class StopChecker:
    """Reads text in any pieces; every piece costs time linear in its length.

    The stop string that is complete first ends the text; of several complete at the same character
    the longest does. The released text does not depend on how the text was cut.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        """Raises ValueError for an empty stop string, which would match everywhere."""
        if "" in stop:
            raise ValueError("a stop string must not be empty")
        self._root = _automaton(stop)
        self._node = self._root
        self._beginnings = frozenset(self._root.next)
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """(text that is safe to show now, the stop string that ended the text or None).

        Of the stop string nothing is ever released. After a match nothing more may be pushed.
        """
        node = self._node
        if node is self._root and self._beginnings.isdisjoint(text):
            return text, None
        for position, character in enumerate(text):
            node = self._advance(node, character)
            if node.match is not None:
                seen = self._held + text[: position + 1]
                self._held = ""
                return seen[: len(seen) - len(node.match)], node.match
        self._node = node
        seen = self._held + text
        shown = len(seen) - node.depth
        self._held = seen[shown:]
        return seen[:shown], None

    def flush(self) -> str:
        """The withheld text, when the end of the text shows that it was no stop string."""
        held, self._held, self._node = self._held, "", self._root
        return held

    def _advance(self, node: _Node, character: str) -> _Node:
        while True:
            following = node.next.get(character)
            if following is not None:
                return following
            if node.fallback is None:
                return node
            node = node.fallback


def _automaton(stop: tuple[str, ...]) -> _Node:
    root = _Node(0)
    for string in stop:
        node = root
        for character in string:
            node = node.next.setdefault(character, _Node(node.depth + 1))
        node.match = string
    level = deque([root])
    while level:
        parent = level.popleft()
        for character, node in parent.next.items():
            node.fallback = _fallback(parent, character, root)
            node.match = node.match or node.fallback.match
            level.append(node)
    return root


def _fallback(parent: _Node, character: str, root: _Node) -> _Node:
    shorter = parent.fallback
    while shorter is not None:
        if character in shorter.next:
            return shorter.next[character]
        shorter = shorter.fallback
    return root
