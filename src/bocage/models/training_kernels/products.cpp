// The products of a training step on AMX tiles: a linear map with what stands around it, and the
// gradient of its weight.
//
// Weights change in every step, so they are packed in every step.
//
// Axes: M rows (tokens), K depth, O columns.

#include "training.h"

// Weight [O, K] times gain [K] (or null) as a product reads it: [O/32][K/32][parts][2][16][16][2], columns,
// depth, parts, halves of the columns, depth, columns, halves of depth. `turned`: of the product with its
// columns K and its depth O.
template <int parts>
static void pack_weight(const float* weight, const float* gain, bf16* to, int64_t O, int64_t K,
                        bool turned) {
  const int64_t n_o = O / 32, n_k = K / 32;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t o = 0; o < n_o; o++)
    for (int64_t k = 0; k < n_k; k++) {
      const float* block = weight + o * 32 * K + k * 32;
      const __m512 g0 = gain ? load16(gain + k * 32) : _mm512_set1_ps(1);
      const __m512 g1 = gain ? load16(gain + k * 32 + 16) : _mm512_set1_ps(1);
      __m512i words[2][parts * 16];
      if (turned) {
        for (int r = 0; r < 16; r++) {
          const float *row = block + r * K, *other = row + 16 * K;
          split_words<parts>(_mm512_mul_ps(load16(row), g0), _mm512_mul_ps(load16(other), g0),
                             words[0] + r, 16);
          split_words<parts>(_mm512_mul_ps(load16(row + 16), g1), _mm512_mul_ps(load16(other + 16), g1),
                             words[1] + r, 16);
        }
        bf16* at = to + (k * n_o + o) * parts * PAIR;
        store_tiles<parts, false>(words[0], at);
        store_tiles<parts, false>(words[1], at + PAIR / 2);
      } else {
        for (int r = 0; r < 32; r++) {
          const float* row = block + r * K;
          split_words<parts>(_mm512_mul_ps(load16(row), g0), _mm512_mul_ps(load16(row + 16), g1),
                             words[r / 16] + r % 16, 16);
        }
        bf16* at = to + (o * n_k + k) * parts * PAIR;
        store_tiles<parts, true>(words[0], at);
        store_tiles<parts, true>(words[1], at + PAIR / 2);
      }
    }
}

// What becomes of a block of sums s.
//   PLAIN       y = s + bias
//   ADD         y = plus + (s + bias) * row_scale
//   GELU        other = s + bias, y = gelu(other)
//   GELU_BACK   y = s * gelu'(plus), other = gelu(plus)
enum Kind : int64_t { PLAIN, ADD, GELU, GELU_BACK };

template <typename Number>
struct Ending {
  Kind kind;
  const float* bias;       // or null
  const void* plus;        // ADD: float
  const float* row_scale;  // or null
  Number *y, *other;
  int64_t O;
  Done done = {};

  void write(int64_t first, int64_t last) const {
    if (first >= last) return;
    const __m512 b0 = bias ? load16(bias + done.column) : _mm512_setzero_ps();
    const __m512 b1 = bias ? load16(bias + done.column + 16) : _mm512_setzero_ps();
    for (int64_t r = first; r < last; r++) {
      const float* s = done.sums + r / 16 * 512 + r % 16 * 16;
      const int64_t at = (done.row + r) * O + done.column;
      finish(_mm512_add_ps(load16(s), b0), at, done.row + r);
      finish(_mm512_add_ps(load16(s + 256), b1), at + 16, done.row + r);
    }
  }
  void finish(__m512 v, int64_t at, int64_t m) const {
    if (kind == ADD) {
      const __m512 scale = _mm512_set1_ps(row_scale ? row_scale[m] : 1);
      v = _mm512_fmadd_ps(v, scale, load16((const float*)plus + at));
    } else if (kind == GELU) {
      store16(other + at, v);
      v = Gelu(v).value;
    } else if (kind == GELU_BACK) {
      const Gelu gelu(load16((const Number*)plus + at));
      store16(other + at, gelu.value);
      v = _mm512_mul_ps(v, gelu.slope);
    }
    store16(y + at, v);
  }
};

// Rows of x that a chunk of a weight's gradient takes, and columns of both sides per task.
static constexpr int64_t CHUNK = 256;
static constexpr int64_t GRADIENT_STEP = 4;

// [M, n] numbers of one side of a gradient, 32 columns from `column` on and 32 rows from `row` on, as tiles
// [parts][2][16][32 or 16 x 2]: turned for the left side. Adds the columns to total [32] if given.
template <int parts, bool left, typename Number>
static void pack_columns(const Number* x, int64_t stride, int64_t n_rows, const float* row_scale,
                         const float* moments, bf16* to, float* total) {
  __m512i words[parts * 16];
  for (int half = 0; half < 2; half++, x += 16) {
    __m512 sum = _mm512_setzero_ps();
    for (int r = 0; r < 16; r++) {
      auto value = [&](int64_t m) {
        if (m >= n_rows) return _mm512_setzero_ps();
        const __m512 v = load16(x + m * stride);
        if (moments)
          return _mm512_mul_ps(_mm512_sub_ps(v, _mm512_set1_ps(moments[2 * m])),
                               _mm512_set1_ps(moments[2 * m + 1]));
        return row_scale ? _mm512_mul_ps(v, _mm512_set1_ps(row_scale[m])) : v;
      };
      const __m512 a = value(r), b = value(r + 16);
      if (total) sum = _mm512_add_ps(sum, _mm512_add_ps(a, b));
      split_words<parts>(a, b, words + r, 16);
    }
    store_tiles<parts, left>(words, to + half * PAIR / 2);
    if (total) store16(total + half * 16, _mm512_add_ps(load16(total + half * 16), sum));
  }
}

// by_weight [O, K] = (row_scale g)^T norm(x), or that added to it; by_bias [O] the sums of g likewise.
template <int parts, typename G, typename X>
static void weight_gradient(const G* g, const float* row_scale, const X* x, const float* moments,
                            float* by_weight, float* by_bias, int64_t M, int64_t O, int64_t K,
                            bool add) {
  const int64_t n_threads = omp_get_max_threads(), n_o = O / 32, n_k = K / 32;
  // Blocks of a task: sums and both packed sides stay in the cache.
  const int64_t most = 24;
  int64_t o_groups = (n_o + most - 1) / most, k_groups = (n_k + most - 1) / most;
  while (o_groups * k_groups % n_threads) {  // split the longer side further
    int64_t& longer = n_o * k_groups >= n_k * o_groups ? o_groups : k_groups;
    if (longer >= (&longer == &o_groups ? n_o : n_k)) break;
    longer++;
  }
  const int64_t tall = (n_o + o_groups - 1) / o_groups, wide = (n_k + k_groups - 1) / k_groups;
  const int64_t depth = CHUNK / 32, block = depth * parts * PAIR;
  if (by_bias && !add) std::memset(by_bias, 0, O * sizeof(float));
  if (!M && !add) std::memset(by_weight, 0, O * K * sizeof(float));
  const TileShapes shapes;
#pragma omp parallel
  {
    TileSession session(shapes);
    bf16* left = (bf16*)std::aligned_alloc(64, tall * block * sizeof(bf16));
    bf16* right = (bf16*)std::aligned_alloc(64, wide * block * sizeof(bf16));
#pragma omp for collapse(2) schedule(static)
    for (int64_t og = 0; og < o_groups; og++)
      for (int64_t kg = 0; kg < k_groups; kg++) {
        const int64_t o0 = n_o * og / o_groups, o1 = n_o * (og + 1) / o_groups;
        const int64_t k0 = n_k * kg / k_groups, k1 = n_k * (kg + 1) / k_groups;
        for (int64_t m = 0; m < M; m += CHUNK) {
          const int64_t n = std::min(depth, (M - m + 31) / 32);
          for (int64_t d = 0; d < n; d++) {
            const int64_t first = m + d * 32, rows = M - first;
            for (int64_t o = o0; o < o1; o++)
              pack_columns<parts, true>(g + first * O + o * 32, O, rows,
                                        row_scale ? row_scale + first : nullptr, nullptr,
                                        left + (o - o0) * block + d * parts * PAIR,
                                        by_bias && kg == 0 ? by_bias + o * 32 : nullptr);
            for (int64_t k = k0; k < k1; k++)
              pack_columns<parts, false>(x + first * K + k * 32, K, rows, nullptr,
                                         moments ? moments + 2 * first : nullptr,
                                         right + (k - k0) * block + d * parts * PAIR, nullptr);
          }
          for (int64_t d0 = 0; d0 < n; d0 += GRADIENT_STEP)
            for (int64_t k = k0; k < k1; k++)
              for (int64_t o = o0; o < o1; o++) {
                float* sums = by_weight + o * 32 * K + k * 32;
                before_tile_load();
                if (m + d0 == 0 && !add) zero_sums();
                else load_sums(sums, K);
                for (int64_t d = d0; d < std::min(d0 + GRADIENT_STEP, n); d++)
                  multiply<parts>(left + (o - o0) * block + d * parts * PAIR,
                                  right + (k - k0) * block + d * parts * PAIR);
                store_sums(sums, K);
              }
        }
      }
    std::free(left);
    std::free(right);
  }
}

extern "C" void bocage_pack_weight(const float* weight, const float* gain, bf16* to, int64_t O,
                                   int64_t K, int64_t turned, int64_t parts) {
  if (parts == 3) pack_weight<3>(weight, gain, to, O, K, turned);
  else pack_weight<1>(weight, gain, to, O, K, turned);
}

// y [M, O] of x [M, K] with a packed weight; see Ending. x is row_scale[m] x for GELU_BACK and for PLAIN.
extern "C" void bocage_training_product(const void* x, int64_t x_fp32, const bf16* weight,
                                        int64_t parts, const float* bias, const void* plus,
                                        const float* row_scale, void* y, void* other,
                                        int64_t y_fp32, float* moments, float epsilon, int64_t M,
                                        int64_t K, int64_t O, int64_t kind) {
  const Norm norm{epsilon, moments};
  auto run = [&](auto* from, auto* to, auto count) {
    using Out = std::remove_pointer_t<decltype(to)>;
    const Ending<Out> ending{Kind(kind), bias, plus, kind == ADD ? row_scale : nullptr,
                             to, (Out*)other, O};
    product_of_rows<decltype(count)::value>(from, weight, moments ? &norm : nullptr,
                                            kind == ADD ? nullptr : row_scale, ending, M, K);
  };
  using One = std::integral_constant<int, 1>;
  if (parts == 3) run((const float*)x, (float*)y, std::integral_constant<int, 3>());
  else if (x_fp32 && y_fp32) run((const float*)x, (float*)y, One());
  else if (x_fp32) run((const float*)x, (bf16*)y, One());
  else if (y_fp32) run((const bf16*)x, (float*)y, One());
  else run((const bf16*)x, (bf16*)y, One());
}

extern "C" void bocage_weight_gradient(const void* g, int64_t g_fp32, const float* row_scale,
                                       const void* x, int64_t x_fp32, const float* moments,
                                       int64_t parts, float* by_weight, float* by_bias, int64_t M,
                                       int64_t O, int64_t K, int64_t add) {
  auto run = [&](auto* left, auto* right, auto count) {
    weight_gradient<decltype(count)::value>(left, row_scale, right, moments, by_weight, by_bias, M,
                                            O, K, add);
  };
  using One = std::integral_constant<int, 1>;
  if (parts == 3) run((const float*)g, (const float*)x, std::integral_constant<int, 3>());
  else if (g_fp32 && x_fp32) run((const float*)g, (const float*)x, One());
  else if (g_fp32) run((const float*)g, (const bf16*)x, One());
  else if (x_fp32) run((const bf16*)g, (const float*)x, One());
  else run((const bf16*)g, (const bf16*)x, One());
}
