"""Execution: one Worker per rank, its batch, its sampler, and the ways to reach it."""
