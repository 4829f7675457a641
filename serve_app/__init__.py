"""The service: HTTP, keys, limits, queueing and deployment around the engine.

Never imports torch; the engine is reached through plain data only.
"""
