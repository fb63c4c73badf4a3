// What training kernels share: values as tiles of bf16, their sums, exponentials.

#pragma once

#include "blocks.h"

static inline __m512 real(__m512i words) { return _mm512_castsi512_ps(words); }

// Two vectors as 16 words, a below b. Neighbours in depth are thus 16 apart, on both sides of a product. Of
// three parts each is what the parts before it leave, cut off and not rounded: 8 bits each, 24 in all.
template <int parts>
static inline void split_words(__m512 a, __m512 b, __m512i* words, int64_t stride) {
  if constexpr (parts == 1) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23,
                                           7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    words[0] = _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(b, a));
  } else {
    const __m512i high = _mm512_set1_epi32(0xffff0000);
#pragma GCC unroll 3
    for (int p = 0; p < parts; p++) {
      const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(a), 16);
      words[p * stride] = _mm512_ternarylogic_epi32(low, _mm512_castps_si512(b), high, 0xf8);  // low | b & high
      if (p + 1 < parts) {
        a = _mm512_sub_ps(a, real(_mm512_and_si512(_mm512_castps_si512(a), high)));
        b = _mm512_sub_ps(b, real(_mm512_and_si512(_mm512_castps_si512(b), high)));
      }
    }
  }
}

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

// 2^x to 1e-7.
static inline __m512 exp2_fine(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, 0x08);  // x - round(x), no exceptions
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.0013266971f), f, _mm512_set1_ps(0.00967546f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.055507425f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.24022122f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69314694f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0000001f));
  return _mm512_scalef_ps(p, _mm512_sub_ps(x, f));
}

// GELU and its derivative; the normal distribution by Abramowitz and Stegun 7.1.26 (error 8e-8).
struct Gelu {
  __m512 value, slope;
  explicit Gelu(__m512 x) {
    const __m512 z = _mm512_abs_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.70710678f)));
    const __m512 one = _mm512_set1_ps(1);
    const __m512 u = _mm512_fmadd_ps(_mm512_set1_ps(0.3275911f), z, one), near = _mm512_rcp14_ps(u);
    const __m512 t = _mm512_fmadd_ps(_mm512_fnmadd_ps(u, near, one), near, near);  // 1 / u
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(1.061405429f), t, _mm512_set1_ps(-1.453152027f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
    p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
    p = _mm512_mul_ps(_mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f)), t);
    const __m512 power = exp2_fine(_mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-1.44269504f)));
    const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(p, _mm512_set1_ps(0.5f)), power);
    const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __m512 share = _mm512_mask_mov_ps(_mm512_sub_ps(one, tail), negative, tail);
    value = _mm512_mul_ps(x, share);
    slope = _mm512_fmadd_ps(x, _mm512_mul_ps(power, _mm512_set1_ps(0.39894228f)), share);
  }
};
