"""Converters from official downloads to prepared folders; one module per family of data sets.

    python -m data.prepare NAME --source PATH --out PATH    convert a download
    python -m data.check PATH                               verify a prepared folder
    python -m data.show PATH                                draw a sample

A prepared folder holds ArrayRecord shards and a MANIFEST.json that records the origin of every
byte. TFDS opens the folder with `tfds.builder_from_directory(PATH).as_data_source()`, and
`smoothsa_jax.inputs` reads it directly. Neither needs TensorFlow.
"""
