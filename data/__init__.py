"""Official downloads -> prepared folders, one file a family of data sets.

    python -m data.prepare NAME --source PATH --out PATH    read what was downloaded, write a prepared folder
    python -m data.check PATH                               verify a prepared folder
    python -m data.show PATH                                draw a sample, as stored and as the model sees it

A prepared folder holds ArrayRecord shards that TFDS opens (`tfds.builder_from_directory(PATH).as_data_source()`) and
`smoothsa_jax.inputs` reads, neither with TensorFlow, and a MANIFEST.json: where every byte came from.
"""
