"""Run trained models on your own pictures and videos.

This package has `load`, `segment`, `stream`, `draw` and `main.py --mode=predict`.

    pictures (arrays, PIL, paths) -> uint8 frames -> the model's size -> slots and attention
      -> masks at the pictures' size

`load.py` finds trained models, `frames.py` reads pictures, `segmenter.py` runs a model,
`segmentation.py` holds the result and `draw.py` shows it. For `--mode=predict`, `predict.py` is the
loop, `sources.py` finds the files, `videos.py` reads videos in a separate process (`decoding.py`;
`truncation.py` tells whether a file is cut), `given_boxes.py` reads boxes, `edits.py` edits slots
for their decoded pictures, `shot_cuts.py` detects cuts, `results.py` writes the results, and
`overlays.py` makes videos and contact sheets. How files become pixels is in
`smoothsa_jax/inputs/media.py`.
"""
