"""SmoothSA in JAX and Flax: object-centric learning on images and videos.

Dimension letters, the same in every docstring of this package:

    B  batch                    H W  image height, width in pixels
    T  frames of a clip         h w  height, width of the feature grid
    N  slots                    M    tokens of a frame, M = h * w
    C  feature width            D    slot width
    K  segments of the labels, background included

"Method section n" refers to the summary of the paper (arXiv 2508.05417) in docs/design.md.
"""

__version__ = "0.2.0"

_PUBLIC = {"load": "load", "list_models": "load", "draw": "draw", "read_video": "videos"}


def __getattr__(name: str):
    # Imported when first used: `import smoothsa_jax` alone starts no JAX.
    if name in _PUBLIC:
        import importlib

        return getattr(importlib.import_module(f"smoothsa_jax.inference.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
