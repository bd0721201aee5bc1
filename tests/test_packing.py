"""Packing: the documented bit layout, the round trip, and refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kernels import MAX_K, check_packed, pack, packed_shape, unpack


def field_by_field(packed: np.ndarray, row: int, column: int) -> int:
    """Read one code by the drawing in packing.py, without any array operation."""
    lane, inner = row % 16, column % 16
    byte = int(packed[row // 16, column // 16, 4 * lane + inner % 4])
    return (byte >> (2 * (inner // 4)) & 3) - 1


def test_drawn_example_of_the_layout():
    codes = np.zeros((1, 16), dtype=np.int8)
    codes[0, [0, 4, 8, 12]] = [1, 0, -1, 1]
    assert pack(codes)[0, 0, 0] == 0b10_00_01_10


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 70)).flatmap(
        lambda shape: arrays(np.int8, shape, elements=st.integers(-1, 1))
    )
)
def test_unpack_inverts_pack_and_every_field_is_where_the_drawing_says(codes):
    packed = pack(codes)
    n, k = codes.shape
    assert packed.shape == packed_shape(n, k)
    assert np.array_equal(unpack(packed, n, k), codes)
    for row, column in [(0, 0), (n - 1, k - 1), (n // 2, k // 2)]:
        assert field_by_field(packed, row, column) == codes[row, column]


def test_padding_holds_code_zero():
    packed = pack(np.ones((3, 5), dtype=np.int8))
    whole = unpack(packed, 16, 16)
    assert whole[:3, :5].all()
    assert not whole[3:].any()
    assert not whole[:, 5:].any()


def test_non_contiguous_codes_pack_like_their_copy():
    codes = np.random.default_rng(0).integers(-1, 2, (50, 40)).astype(np.int8)
    assert np.array_equal(pack(codes.T[::2]), pack(codes.T[::2].copy()))


@pytest.mark.parametrize(
    ("codes", "reason"),
    [
        (np.zeros((2, 2), dtype=np.int16), "int8"),
        (np.zeros(4, dtype=np.int8), "int8 array"),
        (np.zeros((0, 4), dtype=np.int8), "N >= 1"),
        (np.zeros((1, MAX_K + 1), dtype=np.int8), str(MAX_K)),
        (np.full((2, 2), 2, dtype=np.int8), "from 2 to 2"),
        ([[0, 1]], "list"),
    ],
)
def test_pack_refuses_what_is_not_ternary(codes, reason):
    with pytest.raises(ValueError, match=reason):
        pack(codes)


def test_truncated_or_corrupted_bytes_are_refused():
    packed = pack(np.ones((20, 20), dtype=np.int8))
    with pytest.raises(ValueError, match="packed must be uint8"):
        unpack(packed[:1], 20, 20)
    with pytest.raises(ValueError, match="packed must be uint8"):
        unpack(packed.view(np.int8), 20, 20)
    with pytest.raises(ValueError, match="C-contiguous"):
        unpack(packed[:, ::-1], 20, 20)
    packed[1, 0, 7] = 0b00_11_00_00
    with pytest.raises(ValueError, match="corrupted"):
        check_packed(packed, 20, 20)
