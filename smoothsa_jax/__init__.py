"""Object-centric learning with slots, in JAX and Flax, on images and videos.

A config composes a model from parts: an encoder, an initializer, an aggregator, a transition, a
decoder and a target. SmoothSA (arXiv 2508.05417) is one such composition; docs/design.md summarizes
the method.

Dimension letters, the same in every docstring and shape annotation of this package:

    B  batch                      H W  height and width of an image, in pixels
    T  frames of a clip           h w  height and width of the feature grid
    N  slots                      M    tokens of a frame, M = h * w
    C  width of features          D    width of slots
    E  width of attention         Q S  queries and keys of attention
    I  iterations or layers       S    also: frames of memory in a transition
    P  pixels                     K    segments of the labels, background included; or
                                       objects, or channels of a prediction, where stated
"""

__version__ = "0.2.0"

_PUBLIC = {"load": "load", "list_models": "load", "draw": "draw", "read_video": "videos"}


def __getattr__(name: str):
    # Imported on first use, so that `import smoothsa_jax` does not import JAX.
    if name in _PUBLIC:
        import importlib

        return getattr(importlib.import_module(f"smoothsa_jax.inference.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
