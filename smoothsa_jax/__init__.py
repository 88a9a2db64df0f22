"""SmoothSA in JAX and Flax: object-centric learning on images and videos.

Dimension letters, the same in every docstring of this package:

    B  batch                    H W  image height, width in pixels
    T  frames of a clip         h w  height, width of the feature grid
    N  slots                    M    tokens of a frame, M = h * w
    C  feature width            D    slot width
    K  segments of the labels, background included

"Method section n" refers to the summary of the paper (arXiv 2508.05417) in docs/design.md.
"""

__version__ = "0.1.0"
