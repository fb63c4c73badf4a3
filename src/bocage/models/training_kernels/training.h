// What training kernels share: vectors as tiles of bf16, and their sums.

#pragma once

#include "../engine/product_of_rows.h"

static inline void transpose16(__m512i* r) {
  __m512i t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// 16 vectors of words from (row, part) as a tile per part, `from[part * 16 + row]`.
template <int parts, bool transposed>
static inline void store_tiles(__m512i* from, bf16* to) {
#pragma GCC unroll 3
  for (int p = 0; p < parts; p++) {
    if (transposed) transpose16(from + p * 16);
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++) _mm512_store_si512(to + p * PAIR + r * 32, from[p * 16 + r]);
  }
}

// A block of 32 x 32 of a matrix whose rows are `stride` numbers apart.
static inline void load_sums(const float* sums, int64_t stride) {
  _tile_loadd(0, sums, stride * 4); _tile_loadd(1, sums + 16, stride * 4);
  _tile_loadd(2, sums + 16 * stride, stride * 4); _tile_loadd(3, sums + 16 * stride + 16, stride * 4);
}

static inline void store_sums(float* sums, int64_t stride) {
  _tile_stored(0, sums, stride * 4); _tile_stored(1, sums + 16, stride * 4);
  _tile_stored(2, sums + 16 * stride, stride * 4); _tile_stored(3, sums + 16 * stride + 16, stride * 4);
}
