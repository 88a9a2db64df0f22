"""The same work on an engine, Ray: whole corpora, on one machine or on a cluster.

`--engine=ray` runs what the commands run without it. Ray schedules, holds back what is too fast and
starts again what has died; nothing here does.

`cluster.py` connects. For `--mode=predict`, `corpus.py` finds what is read, `reading.py` decodes
it, `segmenting.py` segments it, `rows.py` makes tables, `parts.py` writes them and knows what is
finished, `storage.py` reaches object stores, and `predict.py` joins them. `inputs/found.py` opens
the results as stored slots.

`pieces.py` does pieces of other work, as tasks or in actors: the shards of `python -m data.prepare`
and `data.store`, whose flags are in `command_line.py`, and in `evaluate.py` the shares of a split.
"""
