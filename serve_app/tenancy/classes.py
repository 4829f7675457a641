"""Classes of service: who goes first, and how that is told to the scripts.

Owns the form of the key `rules`, which has the bounds of over-commitment in it too. Which class a
request runs in and whose turn it is, scripts/classes.lua decides.
"""

import msgspec
import structlog

from serve_app.sections import ClassesSection
from serve_app.tenancy.keys import CLASSES
from serve_app.tenancy.store import Store

log = structlog.get_logger(__name__)


def longest_wait_s(classes: ClassesSection, queue_timeout_s: float) -> float:
    """The longest that a request of any class may wait; `queue_timeout_s` where a class has none of
    its own."""
    own = (getattr(classes, name).queue_timeout_s for name in CLASSES)
    return max(queue_timeout_s if timeout_s is None else timeout_s for timeout_s in own)


async def publish_rules(
    store: Store,
    classes: ClassesSection,
    queue_timeout_s: float,
    kv_reserve: tuple[float, float],
    version: int,
) -> None:
    """Tells the scripts what is so in each class, and the least and most KV cache to reserve for a
    token of expected output, unless they were told by a newer version of the configuration. Raises
    StoreUnavailable."""
    rules = [_rule(classes, name, queue_timeout_s) for name in CLASSES]
    rules.append([round(share * 100) for share in kv_reserve])
    running = await store.run("rules", version, msgspec.json.encode(rules).decode())
    if running > version:
        log.warning("rules_are_older", version=version, running_version=running)


def _rule(classes: ClassesSection, name: str, queue_timeout_s: float) -> list[int]:
    """In the order of scripts/classes.lua."""
    rule = getattr(classes, name)
    timeout_s = queue_timeout_s if rule.queue_timeout_s is None else rule.queue_timeout_s
    percents = (rule.reserved_share * 100, rule.ceiling * 100)
    return [*map(round, percents), round(rule.promotion_s * 1e6), round(timeout_s * 1e6)]
