// Matrix products of fp32 on the bf16 tile unit, with what comes before and after them in the same pass:
// a norm, bias, GELU, a sum.
//
// A value of fp32 is the sum of three of bf16 (8 + 8 + 8 bits). Of the nine products of two such sums
// the six largest count, added in fp32; the other three are below its rounding. Six tile products still
// take half the time of one in vector registers, and err no more (docs/numbers.md).
//
// Work is done in blocks of 32 rows x 32 columns (four tiles of sums). A thread packs the rows of its
// task as tiles that stay in its cache, and weights pass by, laid out once in the order they are read.
//
// Axes: M rows, K depth, O columns.

#include "blocks.h"

static constexpr int64_t PARTS = 3;  // numbers of bf16 that stand for one value

namespace {

static inline __m512 widen(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

// 32 values as rows of tiles: each part is what the parts before it leave, rounded.
static inline void split(__m512 a, __m512 b, bf16* to) {
  for (int p = 0; p < PARTS; p++) {
    const __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    _mm512_store_si512(to + p * PAIR, rounded);
    a = _mm512_sub_ps(a, widen(_mm512_castsi512_si256(rounded)));
    b = _mm512_sub_ps(b, widen(_mm512_extracti64x4_epi64(rounded, 1)));
  }
}

// Up to 32 rows of x, n of its K columns, as tiles [n / 32][3][2][16][32]; missing rows are zero.
static void pack_rows(const float* x, int64_t n_rows, int64_t K, int64_t n, bool norm, float epsilon,
                      bf16* to) {
  for (int64_t r = 0; r < 32; r++, x += K) {
    bf16* row = to + r / 16 * (PAIR / 2) + r % 16 * 32;
    if (r >= n_rows) {
      for (int64_t k = 0; k < n / 32 * PARTS; k++) std::memset(row + k * PAIR, 0, 64);
      continue;
    }
    __m512 mean = _mm512_setzero_ps(), scale = _mm512_set1_ps(1);
    if (norm) {
      const Moments moments(x, n, epsilon);
      mean = moments.mean, scale = _mm512_set1_ps(moments.inverse_deviation);
    }
    auto value = [&](int64_t k) { return _mm512_mul_ps(_mm512_sub_ps(load16(x + k), mean), scale); };
    for (int64_t k = 0; k < n; k += 32)
      split(value(k), value(k + 16), row + k / 32 * PARTS * PAIR);
  }
}

// What becomes of a block of sums: y = gelu(sums + bias) + plus.
struct Ending {
  const float* bias;
  const float* plus;  // or null
  float* y;
  int64_t O;
  bool gelu;
  const float* sums = nullptr;  // [2][2][16][16] of the block at ...
  int64_t row = 0, column = 0, n_rows = 0;

  void write(int64_t first, int64_t last) const {
    const __m512 b0 = load16(bias + column), b1 = load16(bias + column + 16);
    for (int64_t r = first; r < last; r++) {
      const float* s = sums + r / 16 * 512 + r % 16 * 16;
      const int64_t at = (row + r) * O + column;
      __m512 v0 = _mm512_add_ps(load16(s), b0), v1 = _mm512_add_ps(load16(s + 256), b1);
      if (gelu) v0 = gelu16(v0, y), v1 = gelu16(v1, y);
      if (plus) {
        v0 = _mm512_add_ps(v0, load16(plus + at));
        v1 = _mm512_add_ps(v1, load16(plus + at + 16));
      }
      store16(y + at, v0);
      store16(y + at + 16, v1);
    }
  }
};

static void product(const float* x, const bf16* weight, Ending ending, int64_t M, int64_t K,
                    bool norm, float epsilon) {
  const Shares shares(M, K, ending.O, PARTS, norm);
  const int64_t n_depth = shares.n_depth;
  const int64_t tall = (shares.n_rows + shares.row_groups - 1) / shares.row_groups;
  const int64_t wide = (shares.n_columns + shares.column_groups - 1) / shares.column_groups;
  const bool partial = shares.depth < n_depth;
  const TileShapes shapes;
#pragma omp parallel
  {
    TileSession session(shapes);
    bf16* left = (bf16*)std::aligned_alloc(64, tall * shares.depth * PARTS * PAIR * sizeof(bf16));
    float* sums = (float*)std::aligned_alloc(64, tall * (partial ? wide : 2) * PAIR * sizeof(float));
    Ending last = ending;
#pragma omp for collapse(2) schedule(static)
    for (int64_t h = 0; h < shares.row_groups; h++)
      for (int64_t g = 0; g < shares.column_groups; g++) {
        const int64_t i0 = shares.row(h), i1 = shares.row(h + 1);
        const int64_t n_lines = PARTS * 32 / (i1 - i0);  // of the weights to come, fetched per step
        last.n_rows = 0;
        for (int64_t k0 = 0; k0 < n_depth; k0 += shares.depth) {
          const int64_t n = std::min(shares.depth, n_depth - k0), packed = n * PARTS * PAIR;
          for (int64_t i = i0; i < i1; i++)
            pack_rows(x + i * 32 * K + k0 * 32, M - i * 32, K, n * 32, norm, epsilon,
                      left + (i - i0) * packed);
          for (int64_t j = shares.column(g); j < shares.column(g + 1); j++)
            for (int64_t i = i0; i < i1; i++) {
              const int64_t slot = partial ? j - shares.column(g) : j % 2;
              float* sum = sums + (slot * tall + i - i0) * PAIR;
              before_tile_load();
              if (k0 == 0) zero_sums();
              else load_sums(sum);
              const bf16* a = left + (i - i0) * packed;
              const bf16* b = weight + (j * n_depth + k0) * PARTS * PAIR;
              const char* next = (const char*)(b + packed) + (i - i0) * n * n_lines * 64;
              for (int64_t k = 0; k < n; k++) {
                multiply<PARTS>(a + k * PARTS * PAIR, b + k * PARTS * PAIR);
                for (int64_t line = 0; line < n_lines; line++, next += 64)
                  _mm_prefetch(next, _MM_HINT_T1);
                // Vector units finish the block before while the tile unit is at this one.
                last.write(last.n_rows * k / n, last.n_rows * (k + 1) / n);
              }
              store_sums(sum);
              last.sums = sum, last.row = i * 32, last.column = j * 32;
              last.n_rows = k0 + n < n_depth ? 0 : std::min<int64_t>(32, M - i * 32);
            }
        }
        before_tile_load();
        last.write(0, last.n_rows);
      }
    std::free(left);
    std::free(sums);
  }
}

}  // namespace

// y [M, O] = gelu(norm(x) W^T + bias) + plus. x [M, K]; weight [O/32][K/32][3][2][16][16][2]: columns,
// depth, parts, halves of the columns, pairs of depth, columns, pair. plus [M, O] may be null.
extern "C" void bocage_product_fp32(const float* x, const bf16* weight, const float* bias,
                                    const float* plus, float* y, int64_t M, int64_t K, int64_t O,
                                    int64_t is_norm, float epsilon, int64_t is_gelu) {
  product(x, weight, Ending{bias, plus, y, O, bool(is_gelu)}, M, K, is_norm, epsilon);
}
