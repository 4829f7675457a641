"""Whether steps can be recorded at all, and if not, by whose fault.

Owns the order in which obstacles are named: the setting first, then what no setting changes.
"""

from cluster.attention.backend import AttentionBackend
from cluster.config import EngineConfig
from cluster.device import Device
from cluster.model.tp_group import TPGroup


def obstacle(
    config: EngineConfig, device: Device, backend: AttentionBackend, group: TPGroup
) -> str | None:
    """Why no decode step of this rank can be recorded; None: it can."""
    if config.cuda_graph_sizes is not None and not config.cuda_graph_sizes:
        return "cuda_graph_sizes is empty"
    if not device.supports_graphs:
        return f"{device.name} records nothing"
    if not backend.captured_queries:
        return f"attention backend {backend.name} works on the host in every step"
    if not group.capture_ok:
        return f"collectives by {group.collectives} wait on the host"
    return None
