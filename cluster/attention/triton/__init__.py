"""Paged attention in Triton: the GPU backend that needs nothing beside torch.

Imported only where Triton is installed; `cluster.attention.selection` asks first.
"""
