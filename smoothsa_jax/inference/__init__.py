"""Trained models on one's own pictures and videos: `load`, `segment`, `stream`, `draw`.

    pictures (arrays, PIL, paths) -> uint8 frames -> the model's size -> slots and attention -> masks at the pictures' size

`frames.py` reads what people hand in, `segmenter.py` runs a model, `segmentation.py` is what it finds, `load.py` finds
trained models, `draw.py` shows results.
"""
