"""Packing: the documented bit layout, the round trip, and refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kernels import MAX_K, PACKINGS, check_packed, pack, packed_shape, unpack


def field_by_field(packed: np.ndarray, row: int, column: int, packing: str) -> int:
    """Read one code by the drawing in packing.py, without any array operation."""
    inputs = {"2bit": 16, "base3": 20}[packing]
    lane, inner = row % 16, column % inputs
    byte = int(packed[row // 16, column // inputs, 4 * lane + inner % 4])
    if packing == "2bit":
        return (byte >> (2 * (inner // 4)) & 3) - 1
    return byte * 243 // 256 // 3 ** (4 - inner // 4) % 3 - 1


def test_drawn_examples_of_the_layouts():
    codes = np.zeros((1, 16), dtype=np.int8)
    codes[0, [0, 4, 8, 12]] = [1, 0, -1, 1]
    assert pack(codes)[0, 0, 0] == 0b10_00_01_10
    codes = np.zeros((1, 20), dtype=np.int8)
    codes[0, [0, 4, 8, 12, 16]] = [1, -1, -1, -1, -1]  # digits 2, 0, 0, 0, 0
    assert pack(codes, "base3")[0, 0, 0] == 171


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(list(PACKINGS)),
    st.tuples(st.integers(1, 40), st.integers(1, 70)).flatmap(
        lambda shape: arrays(np.int8, shape, elements=st.integers(-1, 1))
    ),
)
def test_unpack_inverts_pack_and_every_field_is_where_the_drawing_says(packing, codes):
    packed = pack(codes, packing)
    n, k = codes.shape
    assert packed.shape == packed_shape(n, k, packing)
    assert np.array_equal(unpack(packed, n, k, packing), codes)
    check_packed(packed, n, k, packing)
    for row, column in [(0, 0), (n - 1, k - 1), (n // 2, k // 2)]:
        assert field_by_field(packed, row, column, packing) == codes[row, column]


def test_all_numbers_of_five_digits_come_back():
    """Each of the 243 bytes, and a refusal of the 13 that are none."""
    digits = np.stack(np.meshgrid(*[np.arange(-1, 2)] * 5, indexing="ij"), axis=-1)
    codes = np.zeros((243, 20), dtype=np.int8)
    codes[:, ::4] = digits.reshape(243, 5)
    packed = pack(codes, "base3")
    assert np.array_equal(unpack(packed, 243, 20, "base3"), codes)
    bytes_used = set(packed.reshape(-1, 16, 4)[:, :, 0].ravel()[:243].tolist())
    assert len(bytes_used) == 243
    for byte in set(range(256)) - bytes_used:
        packed[3, 0, 5] = byte
        with pytest.raises(ValueError, match="corrupted"):
            unpack(packed, 243, 20, "base3")


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
