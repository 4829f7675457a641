"""Keys, limits, the fair queue and usage, all in Redis; one hash tag per model pool."""
