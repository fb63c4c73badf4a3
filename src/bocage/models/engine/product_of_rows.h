// Products of rows that lie as they are: a thread packs the rows of its task as tiles, which stay in its
// cache, and weights pass by, laid out once in the order they are read.
//
// A value is one number of bf16, or in fp32 the sum of three (8 + 8 + 8 bits). Of the nine products of two
// such sums the six largest count, added in fp32; the other three are below its rounding. Six tile products
// still take half the time of one in vector registers, and err no more (docs/numbers.md).
//
// A block of results is 32 x 32, in tiles 0 to 3; 4 and 5 hold its rows, 6 and 7 its columns.
//
// Axes: M rows, K depth, O columns.

#pragma once

#include "tiles.h"
#include "vectors.h"

#include <omp.h>

static constexpr int64_t CACHE_BYTES = 900000;  // of packed rows, in 2 MB of second-level cache
static constexpr int64_t DEPTH = 768;           // taken at once; deeper products keep partial sums
static constexpr int64_t PAIR = 1024;           // numbers in two tiles, one above or beside the other

#define LEFT(part) _tile_loadd(4, a + part * PAIR, 64); _tile_loadd(5, a + part * PAIR + PAIR / 2, 64)
#define RIGHT(part) _tile_loadd(6, b + part * PAIR, 64); _tile_loadd(7, b + part * PAIR + PAIR / 2, 64)
#define MULTIPLY _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7); \
                 _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7)

// Add 32 rows x 32 deep times 32 deep x 32 columns to the sums.
template <int parts>
static inline void multiply(const bf16* a, const bf16* b) {
  if constexpr (parts == 1) {
    LEFT(0); RIGHT(0); MULTIPLY;
  } else {  // one side changes at a time
    LEFT(0); RIGHT(2); MULTIPLY;
    RIGHT(0); MULTIPLY;
    RIGHT(1); MULTIPLY;
    LEFT(1); MULTIPLY;
    RIGHT(0); MULTIPLY;
    LEFT(2); MULTIPLY;
  }
}

#undef LEFT
#undef RIGHT
#undef MULTIPLY

static inline void zero_sums() {
  _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
}

// Sums as [2][2][16][16].
static inline void load_sums(const float* sums) {
  _tile_loadd(0, sums, 64); _tile_loadd(1, sums + 256, 64);
  _tile_loadd(2, sums + 512, 64); _tile_loadd(3, sums + 768, 64);
}

static inline void store_sums(float* sums) {
  _tile_stored(0, sums, 64); _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64); _tile_stored(3, sums + 768, 64);
}

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

// Groups of rows that fit the cache when packed, and groups of columns where there are fewer of those than
// threads.
struct RowShares {
  int64_t n_rows, n_columns, n_depth, depth, row_groups, column_groups;
  RowShares(int64_t M, int64_t K, int64_t O, int64_t parts, bool whole_depth) {
    const int64_t n_threads = omp_get_max_threads();
    n_rows = (M + 31) / 32, n_columns = O / 32, n_depth = K / 32;
    const int64_t n_steps = whole_depth ? 1 : (K + DEPTH - 1) / DEPTH;
    depth = (n_depth + n_steps - 1) / n_steps;
    const int64_t tall = std::max<int64_t>(1, CACHE_BYTES / (depth * parts * PAIR * 2));
    row_groups = (n_rows + tall - 1) / tall;
    if (n_rows >= n_threads) row_groups = (row_groups + n_threads - 1) / n_threads * n_threads;
    row_groups = std::min(row_groups, n_rows);
    column_groups = std::min(n_columns, std::max<int64_t>(1, n_threads / row_groups));
  }
  int64_t row(int64_t group) const { return n_rows * group / row_groups; }
  int64_t column(int64_t group) const { return n_columns * group / column_groups; }
};

// Norm before a product, without gain; `moments` (or null) gets mean and 1 / deviation of rows [M, 2].
struct Norm {
  float epsilon;
  float* moments;
};

// Up to 32 rows of x from `first` on, n of its K columns, as tiles [n / 32][parts][2][16][32]; missing rows
// are zero.
template <int parts, typename Number>
static void pack_rows(const Number* x, int64_t n_rows, int64_t K, int64_t n, const float* row_scale,
                      const Norm* norm, int64_t first, bf16* to) {
  for (int64_t r = 0; r < 32; r++, x += K) {
    bf16* row = to + r / 16 * (PAIR / 2) + r % 16 * 32;
    if (r >= n_rows) {
      for (int64_t k = 0; k < n / 32 * parts; k++) std::memset(row + k * PAIR, 0, 64);
      continue;
    }
    __m512 mean = _mm512_setzero_ps(), scale = _mm512_set1_ps(row_scale ? row_scale[first + r] : 1);
    if (norm) {
      const Moments moments(x, n, norm->epsilon);
      mean = moments.mean, scale = _mm512_set1_ps(moments.inverse_deviation);
      if (norm->moments) {
        norm->moments[2 * (first + r)] = _mm512_cvtss_f32(mean);
        norm->moments[2 * (first + r) + 1] = moments.inverse_deviation;
      }
    }
    auto value = [&](int64_t k) { return _mm512_mul_ps(_mm512_sub_ps(load16(x + k), mean), scale); };
    for (int64_t k = 0; k < n; k += 32)
      split_words<parts>(value(k), value(k + 16), (__m512i*)(row + k / 32 * parts * PAIR), PAIR / 32);
  }
}

// The block whose sums are complete; write(first, last) of an ending finishes rows of it.
struct Done {
  const float* sums = nullptr;  // [2][2][16][16]
  int64_t row = 0, column = 0, n_rows = 0;
};

// Product of x [M, K], packed by the thread that uses it, and a packed weight.
template <int parts, typename Number, typename Ending>
static void product_of_rows(const Number* x, const bf16* weight, const Norm* norm, const float* row_scale,
                            const Ending& ending, int64_t M, int64_t K) {
  if (!M) return;
  const RowShares shares(M, K, ending.O, parts, norm != nullptr);
  const int64_t n_depth = shares.n_depth, step = parts == 1 ? 8 : DEPTH / 32;
  const int64_t tall = (shares.n_rows + shares.row_groups - 1) / shares.row_groups;
  const int64_t wide = (shares.n_columns + shares.column_groups - 1) / shares.column_groups;
  const bool partial = shares.depth < n_depth;
  const TileShapes shapes;
#pragma omp parallel
  {
    TileSession session(shapes);
    bf16* left = (bf16*)std::aligned_alloc(64, tall * shares.depth * parts * PAIR * sizeof(bf16));
    float* sums = (float*)std::aligned_alloc(64, tall * (partial ? wide : 2) * PAIR * sizeof(float));
    Ending last = ending;
    Done& done = last.done;
#pragma omp for collapse(2) schedule(static)
    for (int64_t h = 0; h < shares.row_groups; h++)
      for (int64_t g = 0; g < shares.column_groups; g++) {
        const int64_t i0 = shares.row(h), i1 = shares.row(h + 1);
        const int64_t n_lines = parts * 32 / (i1 - i0);  // of the weights to come, fetched per step
        done.n_rows = 0;
        for (int64_t k0 = 0; k0 < n_depth; k0 += shares.depth) {
          const int64_t n = std::min(shares.depth, n_depth - k0), packed = n * parts * PAIR;
          for (int64_t i = i0; i < i1; i++)
            pack_rows<parts>(x + i * 32 * K + k0 * 32, M - i * 32, K, n * 32, row_scale, norm,
                             i * 32, left + (i - i0) * packed);
          for (int64_t j = shares.column(g); j < shares.column(g + 1); j++)
            for (int64_t k1 = 0; k1 < n; k1 += step)
              for (int64_t i = i0; i < i1; i++) {
                const int64_t slot = partial ? j - shares.column(g) : j % 2;
                float* sum = sums + (slot * tall + i - i0) * PAIR;
                before_tile_load();
                if (k0 + k1 == 0) zero_sums();
                else load_sums(sum);
                const int64_t n_steps = std::min(step, n - k1);
                const bf16* a = left + (i - i0) * packed + k1 * parts * PAIR;
                const bf16* b = weight + (j * n_depth + k0 + k1) * parts * PAIR;
                const char* next =
                    (const char*)(b + n_steps * parts * PAIR) + (i - i0) * n_steps * n_lines * 64;
                for (int64_t k = 0; k < n_steps; k++) {
                  multiply<parts>(a + k * parts * PAIR, b + k * parts * PAIR);
                  for (int64_t line = 0; line < n_lines; line++, next += 64)
                    _mm_prefetch(next, _MM_HINT_T1);
                  // Vector units finish the block before while the tile unit is at this one.
                  last.write(done.n_rows * k / n_steps, done.n_rows * (k + 1) / n_steps);
                }
                store_sums(sum);
                done.sums = sum, done.row = i * 32, done.column = j * 32;
                done.n_rows = k0 + k1 + n_steps < n_depth ? 0 : std::min<int64_t>(32, M - i * 32);
              }
        }
        before_tile_load();
        last.write(0, done.n_rows);
      }
    std::free(left);
    std::free(sums);
  }
}
