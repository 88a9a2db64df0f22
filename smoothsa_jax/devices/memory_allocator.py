"""Configure the C library's allocator.

This module does not import JAX, so that a program measured against ours can use the same settings.
"""

import ctypes
import os


def keep_freed_memory() -> bool:
    """Let the C library keep the memory that a step frees for the next step (Linux with glibc).

    On a CPU, XLA allocates the buffers of a program in every call. By default, glibc requests
    buffers of this size from the system each time and returns them at once, and the system maps
    fresh pages one fault at a time. That takes a third of a training step of sprites. If one of
    glibc's own variables (MALLOC_...) is set, nothing is changed.

    Returns:
        Whether the settings were changed.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # numbers of malloc.h
    # Older versions reject thresholds above half of a heap, 32 MiB.
    kept = mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 1 << 25)
    # One heap for all threads: other heaps end at 64 MiB and are returned whole, and XLA computes
    # in such threads.
    return bool(kept and mallopt(arena_max, 1) and mallopt(trim_threshold, (1 << 31) - 1))
