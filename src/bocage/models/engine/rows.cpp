// Passes over rows of tokens: the last norm with its weighted mean, and int8 codes.
//
// Axes: L tokens of a cell, D width.

#include "vectors.h"

template <typename Number>
static void norm_pool(const Number* x, float* out, int64_t n_cells, int64_t L, int64_t D,
                      const float* weight, const float* gain, const float* bias, float epsilon) {
#pragma omp parallel for schedule(static)
  for (int64_t c = 0; c < n_cells; c++) {
    float* y = out + c * D;
    std::memset(y, 0, D * sizeof(float));
    for (int64_t l = 0; l < L; l++) {
      const Number* token = x + (c * L + l) * D;
      const Moments moments(token, D, epsilon);
      const __m512 scale = _mm512_set1_ps(moments.inverse_deviation * weight[l]);
      for (int64_t i = 0; i < D; i += 16) {
        const __m512 v = _mm512_sub_ps(load16(token + i), moments.mean);
        store16(y + i, _mm512_fmadd_ps(v, scale, load16(y + i)));
      }
    }
    for (int64_t i = 0; i < D; i += 16)
      store16(y + i, _mm512_fmadd_ps(load16(y + i), load16(gain + i), load16(bias + i)));
  }
}

// out [cells, D] = gain * sum over the L tokens of a cell of weight[l] * normalized x[cell, l] + bias
extern "C" void bocage_norm_pool(const void* x, float* out, int64_t is_fp32, int64_t n_cells,
                                 int64_t L, int64_t D, const float* weight, const float* gain,
                                 const float* bias, float epsilon) {
  if (is_fp32) norm_pool((const float*)x, out, n_cells, L, D, weight, gain, bias, epsilon);
  else norm_pool((const bf16*)x, out, n_cells, L, D, weight, gain, bias, epsilon);
}

// Rows of bf16 to int8 with one scale per row, so that no sample depends on its batch mates.
// What a row is before it is quantized:
//   plain      x
//   gelu       gelu(x * in_scale[row] + bias)
//   add        x, after x += y * in_scale[row] + bias, which is stored
//   norm       then normalized, without gain
extern "C" void bocage_quantize(bf16* x, const bf16* y, const float* in_scale, const float* bias,
                                int64_t is_gelu, int64_t is_norm, float epsilon, int8_t* q,
                                float* q_scale, int64_t n_rows, int64_t D) {
#pragma omp parallel
  {
    float* row = (float*)std::aligned_alloc(64, D * sizeof(float));
#pragma omp for schedule(static)
    for (int64_t r = 0; r < n_rows; r++) {
      bf16* xr = x + r * D;
      const __m512 scale = _mm512_set1_ps(in_scale ? in_scale[r] : 1);
      for (int64_t i = 0; i < D; i += 16) {
        __m512 v = load16(xr + i);
        if (is_gelu) v = gelu16(_mm512_fmadd_ps(v, scale, load16(bias + i)), xr);
        if (y) {
          v = _mm512_add_ps(v, _mm512_fmadd_ps(load16(y + r * D + i), scale, load16(bias + i)));
          store16(xr + i, v);
        }
        store16(row + i, v);
      }
      if (!q) continue;
      __m512 mean = _mm512_setzero_ps(), most = _mm512_setzero_ps();
      float factor = 1;
      if (is_norm) {
        const Moments moments(row, D, epsilon);
        mean = moments.mean, factor = moments.inverse_deviation;
      }
      for (int64_t i = 0; i < D; i += 16)
        most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_sub_ps(load16(row + i), mean)));
      const float largest = std::max(_mm512_reduce_max_ps(most), 1e-20f);
      q_scale[r] = largest * factor / 127;
      const __m512 to_code = _mm512_set1_ps(127 / largest);
      for (int64_t i = 0; i < D; i += 16) {
        const __m512 v = _mm512_mul_ps(_mm512_sub_ps(load16(row + i), mean), to_code);
        _mm_storeu_si128((__m128i*)(q + r * D + i), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
      }
    }
    std::free(row);
  }
}
