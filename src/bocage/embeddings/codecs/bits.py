"""Packing small integers into bytes, most significant bit first, one row of bytes per vector."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def packed_width(n_values: int, bits: int) -> int:
    """Bytes that `n_values` values of `bits` bits need."""
    return -(-n_values * bits // 8)


def pack(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack values [N, D] below 2**bits into bytes, rows padded with zero bits."""
    if bits == 8:
        return np.ascontiguousarray(values, np.uint8)
    if bits == 1:
        return np.packbits(values, axis=1)
    if bits in (2, 4):
        per_byte = 8 // bits
        spare = -values.shape[1] % per_byte
        if spare:
            values = np.pad(values, ((0, 0), (0, spare)))
        packed = np.zeros((len(values), values.shape[1] // per_byte), np.uint8)
        for i in range(per_byte):
            packed |= values[:, i::per_byte] << np.uint8(8 - bits * (i + 1))
        return packed
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint8)
    expanded = (values[:, :, None] >> shifts) & np.uint8(1)
    return np.packbits(expanded.reshape(len(values), -1), axis=1)


def unpack(packed: NDArray[np.uint8], bits: int, n_values: int) -> NDArray[np.uint8]:
    """Undo `pack`: bytes [N, width] to values [N, n_values]."""
    if bits == 8:
        return packed[:, :n_values]
    if bits == 1:
        return np.unpackbits(packed, axis=1, count=n_values)
    if bits in (2, 4):
        per_byte = 8 // bits
        values = np.empty((len(packed), packed.shape[1] * per_byte), np.uint8)
        for i in range(per_byte):
            values[:, i::per_byte] = packed >> np.uint8(8 - bits * (i + 1))
        values &= np.uint8(2**bits - 1)
        return values[:, :n_values]
    expanded = np.unpackbits(packed, axis=1, count=n_values * bits)
    weights = (1 << np.arange(bits - 1, -1, -1)).astype(np.uint8)
    summed: NDArray[np.uint8] = (expanded.reshape(len(packed), n_values, bits) * weights).sum(
        axis=2, dtype=np.uint8
    )
    return summed


def pack_trits(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack values 0, 1, 2 [N, D] five to a byte (3**5 = 243), 1.6 bits each."""
    spare = -values.shape[1] % 5
    padded = np.pad(values, ((0, 0), (0, spare))).reshape(len(values), -1, 5)
    weights = np.array([81, 27, 9, 3, 1], np.uint8)
    packed: NDArray[np.uint8] = (padded * weights).sum(axis=2, dtype=np.uint8)
    return packed


def unpack_trits(packed: NDArray[np.uint8], n_values: int) -> NDArray[np.uint8]:
    """Undo `pack_trits`."""
    table = np.arange(256)[:, None] // np.array([81, 27, 9, 3, 1]) % 3
    values: NDArray[np.uint8] = table.astype(np.uint8)[packed].reshape(len(packed), -1)
    return values[:, :n_values]
