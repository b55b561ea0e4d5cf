"""How much memory a training takes: what to lower before it is too much."""

import sys

import torch


def memory_gb(device: str) -> float:
    """The most memory that this process has taken so far, in 10^9 bytes.

    Args:
        device: torch device that it trains on; on a GPU it is the GPU's memory that torch has handed out, on a CPU the
            process's resident memory.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB, but bytes on macOS
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9
