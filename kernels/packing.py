"""How ternary codes become bytes: the one home of both packings.

Input: `codes`, int8 (N, K) in {-1, 0, +1}. Output: `packed`, uint8 (ceil(N/16), ceil(K/q), 64). The
same bytes lie on disk and in memory, and every kernel reads them as they are. A code is stored as
the field `code + 1` (0, 1 or 2). Sixteen output rows make one 64-byte block with q inputs; the
blocks of sixteen rows follow each other along K, so a kernel reads memory in order:

    block (row group n, input group k)          one lane = one output row = 4 bytes
    +--------+--------+-----+---------+
    | lane 0 | lane 1 | ... | lane 15 |         row 16n + lane
    +--------+--------+-----+---------+
     b0 b1 b2 b3                                byte j of the lane holds the inputs qk + 4p + j

"2bit", the canonical packing: q = 16, four fields of two bits (3 is invalid).

      bits 7..6    bits 5..4    bits 3..2    bits 1..0
      field 3      field 2      field 1      field 0         field p, byte j: input 16k + 4p + j

Example, row 0 with inputs 0, 4, 8, 12 = +1, 0, -1, +1: byte 0 of lane 0 is
(2 << 0) | (1 << 2) | (0 << 4) | (2 << 6) = 0b10_00_01_10 = 0x86.

"base3", 1.6 bits a code, for weights that come from memory at every step: q = 20, five fields as
the digits of a number v in base 3, first digit first, stored as the fraction b = ceil(256 v / 243)
of 256. Tripling a fraction moves its first digit in front of the point: digit p is
floor(3 b_p / 256), and b_{p+1} = 3 b_p mod 256. No digit need be taken out to multiply:
256 sum(digit x) equals 3 sum(b_p x) - sum(b_{p+1} x).

Example, digits 2, 0, 0, 0, 0: v = 162, b = 171; 3 * 171 = 2 * 256 + 1, so digit 0 is 2.

Why this shape: field p of 16 rows x 4 inputs is one operand of an unsigned-by-signed byte dot
product (AVX2 vpmaddubsw, AVX-512 vpdpbusd) against four inputs broadcast to all lanes: no
horizontal sum, and row scales are plain vectors. In 2 bits, `byte & (3 << 2p)` selects it without a
shift, and 64 bytes masked to one field are one row of an AMX VNNI tile. With unsigned fields,
sum(field * x) - sum(x) is the ternary dot product. Rows and inputs that pad N and K hold code 0
(field 1).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROW_GROUP = 16  # output rows of a block: lanes of a 512-bit vector of int32
BLOCK_BYTES = 64


@dataclass(frozen=True)
class Packing:
    """How many inputs a 64-byte block holds, and the longest row whose products are exact."""

    inputs: int
    max_k: int


PACKINGS = {
    # field 3 adds 64 * 2 * 128 per input to an int32 over a quarter of K (vpdpbusd, unshifted)
    "2bit": Packing(16, 524_287),
    # 256 times the product, up to 256 * 128 * K, has to fit an int32
    "base3": Packing(20, 65_535),
}
MAX_K = PACKINGS["2bit"].max_k
_POWERS = np.array([81, 27, 9, 3, 1], np.uint8)
_FRACTIONS = (np.arange(243) * 256 + 242) // 243  # of the numbers with five digits


def packed_shape(n: int, k: int, packing: str = "2bit") -> tuple[int, int, int]:
    """Return the shape of the packed array of an (n, k) weight."""
    return -(-n // ROW_GROUP), -(-k // _known(packing).inputs), BLOCK_BYTES


def activation_width(k: int) -> int:
    """Return the bytes that a row of k int8 activations takes: an odd number of cache lines.

    Tile instructions read whole lines, and rows an even number of lines apart would share a few
    sets of the cache: with K = 4096 all rows of a tile fall into one.
    """
    longest = max(-(-k // 16) * 16, -(-k // 20) * 20)  # whole blocks of either packing
    return (-(-longest // 64) | 1) * 64


def pack(codes: np.ndarray, packing: str = "2bit") -> np.ndarray:
    """Pack ternary codes, four or five to a byte.

    Args:
        codes: int8 (N, K), every value -1, 0 or +1, any strides.
        packing: "2bit" or "base3".

    Returns:
        uint8 (ceil(N/16), ceil(K/16), 64), or ceil(K/20) for "base3", C-contiguous.

    Raises:
        ValueError: the array is not int8 or not 2-dimensional, is empty, exceeds the packing's
            longest row, or holds another value; there is no such packing.
    """
    if not isinstance(codes, np.ndarray) or codes.dtype != np.int8 or codes.ndim != 2:
        raise ValueError(f"codes must be an int8 array (N, K), found {describe(codes)}")
    (n, k), kind = codes.shape, _known(packing)
    if n == 0 or not 0 < k <= kind.max_k:
        raise ValueError(f"codes must be (N >= 1, 1 <= K <= {kind.max_k}), found {codes.shape}")
    low, high = int(codes.min()), int(codes.max())
    if low < -1 or high > 1:
        raise ValueError(f"codes must be -1, 0 or +1, found values from {low} to {high}")
    row_groups, input_groups, _ = shape = packed_shape(n, k, packing)
    fields = np.ones((row_groups * ROW_GROUP, input_groups * kind.inputs), dtype=np.uint8)
    np.add(codes, 1, out=fields[:n, :k], casting="unsafe")
    fields = fields.reshape(row_groups, ROW_GROUP, input_groups, kind.inputs // 4, 4)
    by_field = fields.transpose(3, 0, 2, 1, 4)  # n, lane, k, p, j -> p, n, k, lane, j
    if packing == "2bit":
        packed = by_field[0] | by_field[1] << 2 | by_field[2] << 4 | by_field[3] << 6
    else:
        packed = _FRACTIONS.astype(np.uint8)[np.tensordot(_POWERS, by_field, 1)]
    return np.ascontiguousarray(packed).reshape(shape)


def unpack(packed: np.ndarray, n: int, k: int, packing: str = "2bit") -> np.ndarray:
    """Return the int8 (n, k) codes of a packed array; the inverse of `pack`.

    Raises:
        ValueError: shape or dtype do not belong to an (n, k) weight (a truncated file), or a
            byte has a value that no codes have (a corrupted one).
    """
    check_packed(packed, n, k, packing)
    row_groups, input_groups, _ = packed.shape
    lanes = packed.reshape(row_groups, input_groups, ROW_GROUP, 4)
    if packing == "2bit":
        fields = [lanes >> (2 * p) & 3 for p in range(4)]
    else:
        fields = [lanes.astype(np.uint16) * 3**p % 256 * 3 >> 8 for p in range(5)]
    by_row = np.stack(fields, axis=3).transpose(0, 2, 1, 3, 4)  # n, k, lane, p, j -> n, lane, k
    codes = by_row.astype(np.int8) - np.int8(1)
    return np.ascontiguousarray(codes.reshape(row_groups * ROW_GROUP, -1)[:n, :k])


def check_packed(packed: np.ndarray, n: int, k: int, packing: str = "2bit") -> None:
    """Raise ValueError unless `packed` is a sound packed (n, k) weight; reads every byte."""
    check_packed_shape(packed, n, k, packing)
    if packing == "2bit" and np.any(packed & (packed >> 1) & 0x55):
        raise ValueError("packed holds the field 3, which no code has: the bytes are corrupted")
    if packing == "base3" and not np.isin(np.arange(256), _FRACTIONS)[packed].all():
        raise ValueError("packed holds a byte that no five codes have: the bytes are corrupted")


def check_packed_shape(packed: np.ndarray, n: int, k: int, packing: str = "2bit") -> None:
    """Raise ValueError unless dtype, shape and strides are those of a packed (n, k) weight."""
    longest = _known(packing).max_k
    if n < 1 or not 0 < k <= longest:
        raise ValueError(f"a packed weight is (N >= 1, 1 <= K <= {longest}), asked for ({n}, {k})")
    wanted = packed_shape(n, k, packing)
    if not isinstance(packed, np.ndarray) or packed.dtype != np.uint8 or packed.shape != wanted:
        raise ValueError(
            f"packed must be uint8 {wanted} for a ({n}, {k}) weight, found {describe(packed)}"
        )
    if not packed.flags.c_contiguous:
        raise ValueError("packed must be C-contiguous; use np.ascontiguousarray")


def _known(packing: str) -> Packing:
    if packing not in PACKINGS:
        raise ValueError(f"there is no packing {packing!r}; known: {', '.join(PACKINGS)}")
    return PACKINGS[packing]


def describe(array: object) -> str:
    """Return dtype and shape of an array, or the type of anything else, for error messages."""
    if isinstance(array, np.ndarray):
        return f"{array.dtype} {array.shape}"
    return type(array).__name__
