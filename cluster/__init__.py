"""The engine: token ids in, token ids and text out.

Knows no HTTP, no OpenAI schema, no Redis and no tenants; Ray appears in
`cluster.worker.ray_gang` alone.
"""
