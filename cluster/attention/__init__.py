"""Attention over a paged KV cache: one block-table interface, several backends."""
