"""Rejection: which drafted tokens stand.

Owns the rule, which is exact for every temperature, filter and seed: each draft position is drawn
as it would be without drafts (same logits, same noise, as both depend on the tokens before it
alone), and drafts stand while they are what was drawn. So the output is, token by token, the one
without speculation, and its distribution needs no proof of its own. Knows no tensors.

    known ... t     drafts  a  b  c                                 drawn  a  b  x  y
    positions     [ t  a  b  c ]: each draws the token behind it    given  a  b  x
                                                                    c is rejected, y means nothing
"""

from collections.abc import Sequence


def accept(
    drafts: Sequence[Sequence[int]], drawn: Sequence[int], healthy: Sequence[bool]
) -> list[list[int]]:
    """The tokens that each row gets.

    Args:
        drafts: per row.
        drawn: 1 + len(drafts[i]) tokens of every row, one row after the other.
        healthy: as `drawn`; False where the logits were not finite.

    Returns:
        per row the accepted drafts and one more token. A row ends before its first unhealthy
        position: it is [] if that is the first.
    """
    if len(drawn) == len(drafts):
        return [[token] if good else [] for token, good in zip(drawn, healthy, strict=True)]
    given, at = [], 0
    for draft in drafts:
        tokens: list[int] = []
        for offset in range(len(draft) + 1):
            if not healthy[at + offset]:
                break
            tokens.append(drawn[at + offset])
            if offset == len(draft) or draft[offset] != tokens[-1]:
                break
        given.append(tokens)
        at += len(draft) + 1
    return given
