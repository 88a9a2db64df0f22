"""What the C library does with memory that is freed. Imports no JAX: a program measured beside ours sets the same."""

import ctypes
import os


def keep_freed_memory() -> bool:
    """Let the C library keep the memory that a step frees, for the next step; on Linux with glibc.

    On a CPU, XLA allocates the buffers of a program anew in every call. glibc would get so large ones from the system each
    time and give them back at once, and the system hands out fresh pages one fault at a time: a third of the training
    step of sprites. Where one of glibc's own variables (MALLOC_...) is set, that is left as it is.

    Returns:
      whether it was done.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # numbers of malloc.h
    # Older versions refuse thresholds above half of a heap, 32 MiB.
    kept = mallopt(mmap_threshold, 1 << 30) or mallopt(mmap_threshold, 1 << 25)
    # One heap for all threads: those of others end at 64 MiB and are given back whole, and XLA computes in such threads.
    return bool(kept and mallopt(arena_max, 1) and mallopt(trim_threshold, (1 << 31) - 1))
