"""Service tiers: OpenAI's names for what the queue calls classes.

Owns the two tables. Refuses to know which class a request gets.
"""

CLASS_OF_TIER = {
    "priority": "interactive",
    "fast": "interactive",
    "default": "default",
    "flex": "batch",
}
"""`auto` and `scale` wish for nothing."""

TIER_OF_CLASS = {
    "system": "priority",
    "interactive": "priority",
    "default": "default",
    "batch": "flex",
}
