"""The checksums, beside those of TensorBoard's reader."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from lightning_gradwatch.reading.checksums import masked
from tests.damaged import noise


@given(st.lists(st.binary(max_size=300), max_size=8))
def test_they_are_those_of_tensorboard(texts: list[bytes]) -> None:
    assert masked(texts).tolist() == [masked_crc32c(text) for text in texts]


def test_they_hold_at_the_edges_of_rows_and_of_pairs_of_rows() -> None:
    sizes = [0, 1, 59, 60, 61, 124, 125, 188, 252, 253, 4092, 4093, 20_000]
    texts = [noise(size) for size in sizes]
    assert masked(texts).tolist() == [masked_crc32c(text) for text in texts]


def test_a_value_that_others_have_published() -> None:
    """CRC-32C of ``123456789`` is e3069283 (RFC 3720); masked, it is turned by 15 bits and shifted."""
    crc = 0xE3069283
    assert masked([b"123456789"]).tolist() == [((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF]
