"""Tables with a schema, their readers, and the codec between rows and tensors.

The doors are `schema.Schema`, `dataset.ingest` and `codec.TableCodec`.
"""
