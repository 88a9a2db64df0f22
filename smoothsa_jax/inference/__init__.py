"""Trained models on one's own pictures and videos: `load`, `segment`, `stream`, `draw`, and `main.py --mode=predict`.

    pictures (arrays, PIL, paths) -> uint8 frames -> the model's size -> slots and attention -> masks at the pictures' size

`frames.py` reads what people hand in, `segmenter.py` runs a model, `segmentation.py` is what it finds, `load.py` finds
trained models, `draw.py` shows results. For `--mode=predict`, `sources.py` finds the files, `videos.py` reads videos in a
process of its own (`decoding.py`), `given_boxes.py` reads boxes, `shot_cuts.py` tells cuts, `results.py` writes what was
found, `overlays.py` its videos and sheets; `predict.py` is the loop.
"""
