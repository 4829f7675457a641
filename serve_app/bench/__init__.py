"""Measuring: the engine alone, and a running service as its clients see it.

Nothing that serves imports it.
"""
