"""Decode steps recorded once and replayed: which sizes, over which buffers, and when not."""
