"""How ternary codes become bytes: the one home of the canonical 2-bit layout.

Input: `codes`, int8 (N, K) in {-1, 0, +1}. Output: `packed`, uint8 (ceil(N/16), ceil(K/16), 64).
The same bytes lie on disk and in memory, and every kernel reads them as they are.

A code c is stored as the 2-bit field `c + 1` (0, 1 or 2; 3 is invalid). Sixteen output rows and
sixteen inputs make one 64-byte block; the blocks of sixteen rows follow each other along K, so a
kernel reads memory in order:

    block (row group n, input group k)          one lane = one output row = 4 bytes
    +--------+--------+-----+---------+
    | lane 0 | lane 1 | ... | lane 15 |         row 16n + lane
    +--------+--------+-----+---------+
     b0 b1 b2 b3                                byte j of the lane
      |
      bits 7..6    bits 5..4    bits 3..2    bits 1..0
      field 3      field 2      field 1      field 0         field p, byte j: input 16k + 4p + j
      input 12+j   input 8+j    input 4+j    input j

Example, row 0 with inputs 0, 4, 8, 12 = +1, 0, -1, +1: byte 0 of lane 0 is
(2 << 0) | (1 << 2) | (0 << 4) | (2 << 6) = 0b10_00_01_10 = 0x86.

Why this shape: `byte & (3 << 2p)` selects field p of 16 rows x 4 inputs without a shift, which is
one operand of an unsigned-by-signed byte dot product (AVX2 vpmaddubsw, AVX-512 vpdpbusd) against
four inputs broadcast to all lanes: no horizontal sum, and row scales are plain vectors. The same
64 bytes masked to one field are exactly one row of an AMX VNNI tile. With unsigned fields,
sum(field * x) - sum(x) is the ternary dot product. Rows and inputs that pad N and K to 16 hold
code 0 (field 1).
"""

from __future__ import annotations

import numpy as np

ROW_GROUP = 16  # output rows of a block: lanes of a 512-bit vector of int32
INPUT_GROUP = 16  # inputs of a block: 4 fields x 4 bytes
BLOCK_BYTES = 64

# Field 3 accumulates 64 * 2 * 128 per input over a quarter of K in int32 (vpdpbusd, unshifted).
MAX_K = 524_287


def packed_shape(n: int, k: int) -> tuple[int, int, int]:
    """Return the shape of the packed array of an (n, k) weight."""
    return -(-n // ROW_GROUP), -(-k // INPUT_GROUP), BLOCK_BYTES


def activation_width(k: int) -> int:
    """Return the bytes that a row of k int8 activations takes: an odd number of cache lines.

    Tile instructions read whole lines, and rows an even number of lines apart would share a few
    sets of the cache: with K = 4096 all rows of a tile fall into one.
    """
    return (-(-k // 64) | 1) * 64


def pack(codes: np.ndarray) -> np.ndarray:
    """Pack ternary codes, four to a byte.

    Args:
        codes: int8 (N, K), every value -1, 0 or +1, any strides.

    Returns:
        uint8 (ceil(N/16), ceil(K/16), 64), C-contiguous.

    Raises:
        ValueError: the array is not int8 or not 2-dimensional, is empty, exceeds `MAX_K` columns,
            or holds another value.
    """
    if not isinstance(codes, np.ndarray) or codes.dtype != np.int8 or codes.ndim != 2:
        raise ValueError(f"codes must be an int8 array (N, K), found {describe(codes)}")
    n, k = codes.shape
    if n == 0 or not 0 < k <= MAX_K:
        raise ValueError(f"codes must be (N >= 1, 1 <= K <= {MAX_K}), found shape {codes.shape}")
    low, high = int(codes.min()), int(codes.max())
    if low < -1 or high > 1:
        raise ValueError(f"codes must be -1, 0 or +1, found values from {low} to {high}")
    row_groups, input_groups, _ = packed_shape(n, k)
    fields = np.ones((row_groups * ROW_GROUP, input_groups * INPUT_GROUP), dtype=np.uint8)
    np.add(codes, 1, out=fields[:n, :k], casting="unsafe")
    fields = fields.reshape(row_groups, ROW_GROUP, input_groups, 4, 4)  # n, lane, k, p, j
    by_field = fields.transpose(3, 0, 2, 1, 4)  # p, n, k, lane, j
    packed = by_field[0] | by_field[1] << 2 | by_field[2] << 4 | by_field[3] << 6
    return np.ascontiguousarray(packed).reshape(row_groups, input_groups, BLOCK_BYTES)


def unpack(packed: np.ndarray, n: int, k: int) -> np.ndarray:
    """Return the int8 (n, k) codes of a packed array; the inverse of `pack`.

    Raises:
        ValueError: shape or dtype do not belong to an (n, k) weight (a truncated file), or a
            field holds the invalid value 3 (a corrupted one).
    """
    check_packed(packed, n, k)
    row_groups, input_groups, _ = packed.shape
    lanes = packed.reshape(row_groups, input_groups, ROW_GROUP, 4)
    fields = np.stack([lanes >> (2 * p) & 3 for p in range(4)], axis=3)  # n, k, lane, p, j
    codes = fields.transpose(0, 2, 1, 3, 4).astype(np.int8) - np.int8(1)
    return np.ascontiguousarray(codes.reshape(row_groups * ROW_GROUP, -1)[:n, :k])


def check_packed(packed: np.ndarray, n: int, k: int) -> None:
    """Raise ValueError unless `packed` is a sound packed (n, k) weight; reads every byte."""
    check_packed_shape(packed, n, k)
    if np.any(packed & (packed >> 1) & 0x55):
        raise ValueError("packed holds the field 3, which no code has: the bytes are corrupted")


def check_packed_shape(packed: np.ndarray, n: int, k: int) -> None:
    """Raise ValueError unless dtype, shape and strides are those of a packed (n, k) weight."""
    if n < 1 or not 0 < k <= MAX_K:
        raise ValueError(f"a packed weight is (N >= 1, 1 <= K <= {MAX_K}), asked for ({n}, {k})")
    wanted = packed_shape(n, k)
    if not isinstance(packed, np.ndarray) or packed.dtype != np.uint8 or packed.shape != wanted:
        raise ValueError(
            f"packed must be uint8 {wanted} for a ({n}, {k}) weight, found {describe(packed)}"
        )
    if not packed.flags.c_contiguous:
        raise ValueError("packed must be C-contiguous; use np.ascontiguousarray")


def describe(array: object) -> str:
    """Return dtype and shape of an array, or the type of anything else, for error messages."""
    if isinstance(array, np.ndarray):
        return f"{array.dtype} {array.shape}"
    return type(array).__name__
