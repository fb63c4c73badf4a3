// Products of blocks of 32 x 32 on tiles, whose left sides are packed by the thread that uses them, and how
// the blocks of a whole product are shared out.
//
// A value is one number of bf16, or in fp32 the sum of three (products_fp32.cpp says why six tile products
// are then enough). A block has four tiles per side of a product; tiles 0 to 3 hold sums.

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

namespace {  // products.cpp shares out in another way

// Groups of rows that fit the cache when packed, and groups of columns where there are fewer of those than
// threads.
struct Shares {
  int64_t n_rows, n_columns, n_depth, depth, row_groups, column_groups;
  Shares(int64_t M, int64_t K, int64_t O, int64_t parts, bool whole_depth) {
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

}  // namespace
