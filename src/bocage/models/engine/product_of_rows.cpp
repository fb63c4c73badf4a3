// Linear maps of fp32 on the bf16 tile unit (product_of_rows.h), with norm, bias, GELU and a sum in the same pass.

#include "product_of_rows.h"

struct Ending {  // y = gelu(sums + bias) + plus
  const float* bias;
  const float* plus;  // or null
  float* y;
  int64_t O;
  bool gelu;
  Done done = {};

  void write(int64_t first, int64_t last) const {
    const __m512 b0 = load16(bias + done.column), b1 = load16(bias + done.column + 16);
    for (int64_t r = first; r < last; r++) {
      const float* s = done.sums + r / 16 * 512 + r % 16 * 16;
      const int64_t at = (done.row + r) * O + done.column;
      __m512 v0 = _mm512_add_ps(load16(s), b0), v1 = _mm512_add_ps(load16(s + 256), b1);
      if (gelu) v0 = Gelu(v0).value, v1 = Gelu(v1).value;
      if (plus) {
        v0 = _mm512_add_ps(v0, load16(plus + at));
        v1 = _mm512_add_ps(v1, load16(plus + at + 16));
      }
      store16(y + at, v0);
      store16(y + at + 16, v1);
    }
  }
};

// y [M, O] = gelu(norm(x) W^T + bias) + plus. x [M, K]; weight [O/32][K/32][3][2][16][16][2]: columns,
// depth, parts, halves of the columns, depth, columns, halves of depth. plus [M, O] may be null.
extern "C" void bocage_product_fp32(const float* x, const bf16* weight, const float* bias,
                                    const float* plus, float* y, int64_t M, int64_t K, int64_t O,
                                    int64_t is_norm, float epsilon, int64_t is_gelu) {
  const Norm norm{epsilon, nullptr};
  product_of_rows<3>(x, weight, is_norm ? &norm : nullptr, nullptr, Ending{bias, plus, y, O, bool(is_gelu)},
                     M, K);
}
