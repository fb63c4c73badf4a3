// 16 numbers at a time: loads and stores of both precisions, exponentials, GELU, the moments of a row.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

using bf16 = uint16_t;

static inline __m512 load16(const bf16* x) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16));
}

static inline __m512 load16(const float* x) { return _mm512_loadu_ps(x); }

static inline __m256i round16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

static inline void store16(bf16* y, __m512 x) { _mm256_storeu_si256((__m256i*)y, round16(x)); }

static inline void store16(float* y, __m512 x) { _mm512_storeu_ps(y, x); }

static inline __mmask16 first_lanes(int64_t n) {
  return n >= 16 ? 0xffff : n <= 0 ? 0 : (1u << n) - 1;
}

// 2^x to 3e-6: fraction by a polynomial of degree 4, whole part into the exponent. Enough for the
// shares of attention, which are rounded to bf16.
static inline __m512 exp2_16(__m512 x, const bf16*) {
  const __m512 f = _mm512_reduce_ps(x, 0x01);  // x - floor(x)
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.0135206f), f, _mm512_set1_ps(0.05203743f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.24142749f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69300662f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.00000252f));
  return _mm512_scalef_ps(p, x);
}

// 2^x to 1e-7.
static inline __m512 exp2_16(__m512 x, const float*) {
  const __m512 f = _mm512_reduce_ps(x, 0x08);  // x - round(x), no exceptions
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.0013266971f), f, _mm512_set1_ps(0.00967546f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.055507425f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.24022122f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69314694f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0000001f));
  return _mm512_scalef_ps(p, _mm512_sub_ps(x, f));
}

struct Moments {
  __m512 mean;
  float inverse_deviation;
  template <typename Number>
  Moments(const Number* x, int64_t D, float epsilon) {
    __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < D; i += 16) sum = _mm512_add_ps(sum, load16(x + i));
    mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / D);
    for (int64_t i = 0; i < D; i += 16) {
      const __m512 d = _mm512_sub_ps(load16(x + i), mean);
      squares = _mm512_fmadd_ps(d, d, squares);
    }
    inverse_deviation = 1 / std::sqrt(_mm512_reduce_add_ps(squares) / D + epsilon);
  }
};

// x (1/2 + x P(x^2)) with x clamped inside P: a minimax fit of the error of the whole on |x| < 4.4.
static inline __m512 gelu16(__m512 x, const bf16*) {
  const float c[9] = {0.39876184f,     -0.06607684f,   0.0096433032f,
                      -0.0010550808f,  8.4308398e-05f, -4.7264016e-06f,
                      1.7417220e-07f,  -3.7567016e-09f, 3.5727449e-11f};
  const __m512 limit = _mm512_set1_ps(4.4f);
  const __m512 t = _mm512_min_ps(_mm512_max_ps(x, _mm512_sub_ps(_mm512_setzero_ps(), limit)), limit);
  const __m512 u = _mm512_mul_ps(t, t);
  __m512 p = _mm512_set1_ps(c[8]);
  for (int i = 7; i >= 0; i--) p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(c[i]));
  return _mm512_mul_ps(x, _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.5f)));
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
    // A tail below 2^-100 is none, and numbers below 2^-126 are slow.
    const __m512 exponent = _mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-1.44269504f));
    const __m512 power = exp2_16(_mm512_max_ps(_mm512_set1_ps(-100), exponent), (const float*)nullptr);
    const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(p, _mm512_set1_ps(0.5f)), power);
    const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
    const __m512 share = _mm512_mask_mov_ps(_mm512_sub_ps(one, tail), negative, tail);
    value = _mm512_mul_ps(x, share);
    slope = _mm512_fmadd_ps(x, _mm512_mul_ps(power, _mm512_set1_ps(0.39894228f)), share);
  }
};
