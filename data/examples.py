"""The values of a tf.train.Example, by name."""

import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

from data.family import BadSample


class Values:
    """The flat values of a record.

    Args:
        record: a serialized tf.train.Example.
        where: its name in error messages.
        title: the data set that it should be from.

    Raises:
        BadSample: it is no such example.
    """

    def __init__(self, record: bytes, where: str, title: str):
        self._title = title
        try:
            self._features = tf_example_pb2.Example.FromString(record).features.feature
        except Exception as error:  # protobuf raises several types
            raise BadSample(
                f"{where} is not a tf.train.Example ({error}); download it again"
            ) from error

    def __contains__(self, name: str) -> bool:
        return name in self._features

    def names(self) -> list[str]:
        return list(self._features)

    def numbers(self, name: str) -> np.ndarray:
        feature = self._get(name)
        kind = feature.WhichOneof("kind")
        if kind is None:
            return np.zeros(0)
        return np.array(getattr(feature, kind).value)

    def encoded(self, name: str) -> list[bytes]:
        return list(self._get(name).bytes_list.value)

    def joined(self, name: str) -> bytes:
        """All bytes of a feature, which may be stored one by one."""
        return b"".join(self._get(name).bytes_list.value)

    def _get(self, name: str):
        if name not in self._features:
            raise BadSample(
                f"a record has no {name!r}: it is not from {self._title}, or of another version"
            )
        return self._features[name]
