"""Values with large arrays as bytes, and back without a copy of the arrays.

Between tasks a part is one value of a table. Unpickling its frames would copy them, which takes
longer than all else that a worker does beside its model.
"""

import pickle
from typing import Any

ALIGNED = 16  # bytes; else arrays of floats are slow


def packed(value: Any) -> bytes:
    """Return a value as bytes."""
    found: list[pickle.PickleBuffer] = []
    inner = pickle.dumps(value, 5, buffer_callback=found.append)
    views = [x.raw() for x in found]
    head = pickle.dumps((len(inner), [x.nbytes for x in views]))
    pieces = [len(head).to_bytes(8, "little"), head, inner]
    end = sum(map(len, pieces))
    for view in views:
        pieces += [bytes(-end % ALIGNED), view]
        end += -end % ALIGNED + view.nbytes
    return b"".join(pieces)


def unpacked(data: bytes) -> Any:
    """Return the value; its arrays are read-only and lie in `data`."""
    view, start = memoryview(data), 8 + int.from_bytes(data[:8], "little")
    length, sizes = pickle.loads(view[8:start])
    inner, end, buffers = view[start : start + length], start + length, []
    for size in sizes:
        begin = end + -end % ALIGNED
        end = begin + size
        buffers.append(view[begin:end])
    return pickle.loads(inner, buffers=buffers)
