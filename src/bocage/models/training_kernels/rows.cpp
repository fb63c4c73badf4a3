// Passes over rows of tokens in a training step.
//
// Axes: M rows, D width.

#include "../engine/vectors.h"

// out [M, D] = plus + gradient of x [M, D] from that of its LayerNorm without gain, by_norm; `moments` are
// mean and inverse deviation of rows [M, 2]. plus may be null.
extern "C" void bocage_norm_gradient(const float* by_norm, const float* x, const float* moments,
                                     const float* plus, float* out, int64_t M, int64_t D) {
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < M; m++) {
    const float *g = by_norm + m * D, *row = x + m * D, *p = plus ? plus + m * D : nullptr;
    const __m512 mean = _mm512_set1_ps(moments[2 * m]), scale = _mm512_set1_ps(moments[2 * m + 1]);
    __m512 sum = _mm512_setzero_ps(), along = _mm512_setzero_ps();
    for (int64_t i = 0; i < D; i += 16) {
      const __m512 v = _mm512_mul_ps(_mm512_sub_ps(load16(row + i), mean), scale);
      sum = _mm512_add_ps(sum, load16(g + i));
      along = _mm512_fmadd_ps(load16(g + i), v, along);
    }
    sum = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / D);
    along = _mm512_set1_ps(_mm512_reduce_add_ps(along) / D);
    for (int64_t i = 0; i < D; i += 16) {
      const __m512 v = _mm512_mul_ps(_mm512_sub_ps(load16(row + i), mean), scale);
      const __m512 d = _mm512_sub_ps(_mm512_sub_ps(load16(g + i), sum), _mm512_mul_ps(v, along));
      store16(out + m * D + i,
              _mm512_fmadd_ps(d, scale, p ? load16(p + i) : _mm512_setzero_ps()));
    }
  }
}

// Adjacent numbers a, b as a + bi times c + si, or its conjugate.
static inline __m512 turn16(__m512 x, __m512 factor) {
  const __m512 c = _mm512_moveldup_ps(factor), s = _mm512_movehdup_ps(factor);
  return _mm512_fmaddsub_ps(x, c, _mm512_mul_ps(_mm512_permute_ps(x, 0xb1), s));
}

static inline __m512 turn_back16(__m512 x, __m512 factor) {
  const __m512 c = _mm512_moveldup_ps(factor), s = _mm512_movehdup_ps(factor);
  return _mm512_fmsubadd_ps(x, c, _mm512_mul_ps(_mm512_permute_ps(x, 0xb1), s));
}

template <typename Number>
static void turn(const Number* x, const float* factors, Number* out, int64_t M, int64_t G, int64_t turned,
                 int64_t D) {
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < M; m++)
    for (int64_t p = 0; p < turned; p++)
      for (int64_t i = 0; i < D; i += 16)
        store16(out + (m * turned + p) * D + i,
                turn16(load16(x + (m * G + p) * D + i), load16(factors + m * D + i)));
}

template <typename Number>
static void turn_back(const float* g, const Number* done, const float* factors, Number* out, float* by_angle,
                      int64_t M, int64_t G, int64_t turned, int64_t D) {
  const __m512i odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15);
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < M; m++) {
    const float* own = g + m * G * D;
    for (int64_t i = 0; i < D; i += 16) {
      const __m512 factor = load16(factors + m * D + i);
      __m512 sum = _mm512_setzero_ps();  // imaginary part of conj(done) g in odd places
      for (int64_t p = 0; p < turned; p++) {
        const __m512 v = load16(own + p * D + i), t = load16(done + (m * turned + p) * D + i);
        store16(out + (m * G + p) * D + i, turn_back16(v, factor));
        const __m512 cross = _mm512_mul_ps(_mm512_permute_ps(t, 0xb1), v);  // b' a, a' b
        sum = _mm512_add_ps(sum, _mm512_sub_ps(cross, _mm512_permute_ps(cross, 0xb1)));
      }
      if (by_angle)
        _mm256_storeu_ps(by_angle + (m * D + i) / 2,
                         _mm512_castps512_ps256(_mm512_permutexvar_ps(odd, sum)));
    }
    for (int64_t i = turned * D; i < G * D; i += 16)
      store16(out + m * G * D + i, load16(own + i));
  }
}

// out [M, turned, D]: the first `turned` of the G vectors of tokens x [M, G, D], whose adjacent channels are
// complex numbers, times factors complex [M, D / 2].
extern "C" void bocage_turn(const void* x, const float* factors, void* out, int64_t M, int64_t G,
                            int64_t turned, int64_t D, int64_t is_fp32) {
  if (is_fp32) turn((const float*)x, factors, (float*)out, M, G, turned, D);
  else turn((const bf16*)x, factors, (bf16*)out, M, G, turned, D);
}

// Its gradient [M, G, D] from g [M, G, D], and by_angle [M, D / 2] (or null) from what was turned; out and g
// may be the same in fp32.
extern "C" void bocage_turn_gradient(const float* g, const void* done, const float* factors, void* out,
                                     float* by_angle, int64_t M, int64_t G, int64_t turned, int64_t D,
                                     int64_t is_fp32) {
  if (is_fp32) turn_back(g, (const float*)done, factors, (float*)out, by_angle, M, G, turned, D);
  else turn_back(g, (const bf16*)done, factors, (bf16*)out, by_angle, M, G, turned, D);
}
