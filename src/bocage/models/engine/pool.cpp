// The last norm with its weighted mean.
//
// Axes: L tokens of a cell, D width.

#include "vectors.h"

template <typename Number>
static void norm_pool(const Number* x, float* out, int64_t n_cells, int64_t L, int64_t D,
                      const float* weight, int64_t weights_of_cell, const float* gain, const float* bias, float epsilon) {
#pragma omp parallel for schedule(static)
  for (int64_t c = 0; c < n_cells; c++) {
    float* y = out + c * D;
    std::memset(y, 0, D * sizeof(float));
    for (int64_t l = 0; l < L; l++) {
      const Number* token = x + (c * L + l) * D;
      const Moments moments(token, D, epsilon);
      const __m512 scale = _mm512_set1_ps(moments.inverse_deviation * weight[c * weights_of_cell + l]);
      for (int64_t i = 0; i < D; i += 16) {
        const __m512 v = _mm512_sub_ps(load16(token + i), moments.mean);
        store16(y + i, _mm512_fmadd_ps(v, scale, load16(y + i)));
      }
    }
    for (int64_t i = 0; i < D; i += 16)
      store16(y + i, _mm512_fmadd_ps(load16(y + i), load16(gain + i), load16(bias + i)));
  }
}

// out [cells, D] = gain * sum over the L tokens of a cell of weight[l] * normalized x[cell, l] + bias; the
// weights of the next cell are `weights_of_cell` further.
extern "C" void bocage_norm_pool(const void* x, float* out, int64_t is_fp32, int64_t n_cells,
                                 int64_t L, int64_t D, const float* weight, int64_t weights_of_cell,
                                 const float* gain, const float* bias, float epsilon) {
  auto run = [&](auto* tokens) {
    norm_pool(tokens, out, n_cells, L, D, weight, weights_of_cell, gain, bias, epsilon);
  };
  if (is_fp32) run((const float*)x);
  else run((const bf16*)x);
}
