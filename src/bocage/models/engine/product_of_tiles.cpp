// Matrix products of bf16 or int8 on AMX tiles, with what comes before and after them in the same pass:
// a norm, bias, GELU, a sum.
//
// Tokens stay in the order of tiles from one product to the next, [M/32][D/32][2][16][32]: blocks of 32
// rows x 32 columns, 2 KB each, the rows 0 to 15 before the rows 16 to 31. A block of results is then a
// block of the next product's left side, and nothing is packed. The norm before a product is taken after
// it: (x - mean) / deviation * W = (x W - mean * sum of W) / deviation.
//
// What the speed hangs on (docs/numbers.md): weights of a step stay in the first-level cache, because
// rows and sums pass it by (tile loads with a hint); results are fetched one column early, because a
// store that misses holds up all others.
//
// Axes: M rows, K depth, O columns.

#include "tiles.h"
#include "vectors.h"

#include <omp.h>

#include <type_traits>

static constexpr int64_t PAIR = 1024;           // sums or bf16 numbers in two tiles, beside each other
static constexpr int64_t STEP = 16;             // blocks of depth taken before the next rows: 32 KB of weights
static constexpr int64_t ROW_BYTES = 900000;    // of a task's rows, in 2 MB of second-level cache
static constexpr int64_t SMALL_BYTES = 1200000; // of weights that every thread may read
static constexpr int64_t SUM_BYTES = 800000;    // of a task's unfinished sums, beside them

namespace {

template <typename Code>
constexpr int64_t DEEP = 64 / sizeof(Code);  // depth of a block
template <typename Code>
constexpr int64_t BLOCK = 32 * DEEP<Code>;   // numbers in one, 2 KB

struct RowNorm {
  float mean, scale;
};

// Mean and 1 / deviation of 32 rows of n_depth blocks.
static void row_norms(const bf16* x, int64_t n_depth, float epsilon, RowNorm* norms) {
  const float share = 1.0f / (n_depth * 32);
  for (int64_t r = 0; r < 32; r += 4) {
    const bf16* rows = x + r * 32;
    __m512 sum[4], squares[4], mean[4];
    for (int q = 0; q < 4; q++) sum[q] = squares[q] = _mm512_setzero_ps();
    for (int64_t k = 0; k < n_depth; k++)
#pragma GCC unroll 4
      for (int q = 0; q < 4; q++) {
        const bf16* at = rows + k * PAIR + q * 32;
        sum[q] = _mm512_add_ps(sum[q], _mm512_add_ps(load16(at), load16(at + 16)));
      }
    for (int q = 0; q < 4; q++) mean[q] = _mm512_set1_ps(_mm512_reduce_add_ps(sum[q]) * share);
    for (int64_t k = 0; k < n_depth; k++)
#pragma GCC unroll 4
      for (int q = 0; q < 4; q++) {
        const bf16* at = rows + k * PAIR + q * 32;
        const __m512 a = _mm512_sub_ps(load16(at), mean[q]), b = _mm512_sub_ps(load16(at + 16), mean[q]);
        squares[q] = _mm512_fmadd_ps(a, a, _mm512_fmadd_ps(b, b, squares[q]));
      }
    for (int q = 0; q < 4; q++)
      norms[r + q] = {_mm512_cvtss_f32(mean[q]),
                      1 / std::sqrt(_mm512_reduce_add_ps(squares[q]) * share + epsilon)};
  }
}

// What becomes of a block of sums: y = gelu(norm(sums) + bias) + plus.
template <typename Code>
struct Ending {
  const float *bias, *columns;  // columns: sums of the weight, null without a norm; int8: scales
  const bf16* plus;                 // laid out as y, which it may be; or null
  bf16* y;
  int64_t M, O;
  bool gelu, in_tiles;
  const RowNorm* norms = nullptr;  // of all rows; int8: their scales
  const float* sums = nullptr;     // [2][2][16][16] of the block at hand
  bf16* to = nullptr;
  int64_t stride = 0, row = 0, column = 0, n_rows = 0, done = 0;

  bf16* block(int64_t i, int64_t j) const {
    return in_tiles ? y + (i * (O / 32) + j) * PAIR : y + i * 32 * O + j * 32;
  }

  void begin(const float* of, int64_t i, int64_t j) {
    sums = of, to = block(i, j), stride = in_tiles ? 32 : O, row = i * 32, column = j * 32;
    n_rows = in_tiles ? 32 : std::min<int64_t>(32, M - row), done = 0;
  }

  template <bool is_gelu>  // a branch in each row costs nano 4 %
  void write(int64_t count) {
    // Everything in locals: a store may change any member for all that a compiler knows.
    const __m512 b0 = load16(bias + column), b1 = load16(bias + column + 16);
    const bool scaled = columns, summed = plus;
    const __m512 w0 = scaled ? load16(columns + column) : b0;
    const __m512 w1 = scaled ? load16(columns + column + 16) : b1;
    const float* s = sums + done / 16 * 512 + done % 16 * 16;
    const RowNorm* norm = norms + row + done;
    const int64_t step = stride;
    bf16* at = to + done * step;
    const bf16* more = summed ? plus + (at - y) : nullptr;
#pragma GCC unroll 4
    for (int64_t r = 0; r < count; r++, at += step, s += 16) {
      __m512 v0, v1;
      if constexpr (sizeof(Code) == 1) {
        const __m512 scale = _mm512_set1_ps(norm[r].scale);
        v0 = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(s)), scale);
        v1 = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(s + 256)), scale);
        v0 = _mm512_fmadd_ps(v0, w0, b0), v1 = _mm512_fmadd_ps(v1, w1, b1);
      } else if (v0 = load16(s), v1 = load16(s + 256); scaled) {
        const __m512 mean = _mm512_set1_ps(norm[r].mean), scale = _mm512_set1_ps(norm[r].scale);
        v0 = _mm512_fmadd_ps(_mm512_fnmadd_ps(mean, w0, v0), scale, b0);
        v1 = _mm512_fmadd_ps(_mm512_fnmadd_ps(mean, w1, v1), scale, b1);
      } else {
        v0 = _mm512_add_ps(v0, b0), v1 = _mm512_add_ps(v1, b1);
      }
      if (is_gelu) v0 = gelu16(v0, at), v1 = gelu16(v1, at);
      if (summed) {
        v0 = _mm512_add_ps(v0, load16(more + r * step));
        v1 = _mm512_add_ps(v1, load16(more + r * step + 16));
      }
      store16(at, v0), store16(at + 16, v1);
    }
    done += count;
  }

  void some() {  // four rows, if so many are left
    if (done + 4 > n_rows) return;
    if (gelu) write<true>(4);
    else write<false>(4);
  }

  void rest() {
    while (done + 4 <= n_rows) some();
    if (done < n_rows) {
      if (gelu) write<true>(n_rows - done);
      else write<false>(n_rows - done);
    }
  }
};

// How the blocks of a product are shared out: groups of rows that fit the cache, and groups of columns
// where there are fewer of those than threads. Small weights are rather read by every thread, so that
// rows stay with the core that made them (nano and tiny: 0.9 of the time).
struct Shares {
  int64_t n_rows, n_columns, row_groups, column_groups, tall, wide;
  Shares(int64_t M, int64_t n_depth, int64_t O) {
    const int64_t n_threads = omp_get_max_threads();
    n_rows = (M + 31) / 32, n_columns = O / 32;
    const int64_t fit = std::max<int64_t>(1, ROW_BYTES / (std::min<int64_t>(n_depth, 24) * PAIR * 2));
    row_groups = (n_rows + fit - 1) / fit;
    if (row_groups > 1 || n_depth * O * 64 < SMALL_BYTES)
      row_groups = (row_groups + n_threads - 1) / n_threads * n_threads;
    row_groups = std::min(row_groups, n_rows);
    column_groups = std::min(n_columns, (n_threads + row_groups - 1) / row_groups);
    tall = (n_rows + row_groups - 1) / row_groups;
    wide = (n_columns + column_groups - 1) / column_groups;
  }
  int64_t row(int64_t group) const { return n_rows * group / row_groups; }
  int64_t column(int64_t group) const { return n_columns * group / column_groups; }
};

// Sums of 32 rows x 32 columns over n_steps blocks of depth; meanwhile the vector units finish the block
// before, and weights to come and the place of the results are fetched.
template <typename Code>
static inline void multiply(const Code* a, const Code* b, int64_t n_steps, float* sum, bool first,
                            Ending<Code>& last, const char* next, int64_t n_lines, const bf16* place,
                            int64_t place_stride) {
  before_tile_load();
  if (first) {
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
  } else {
    _tile_stream_loadd(0, sum, 64); _tile_stream_loadd(1, sum + 256, 64);
    _tile_stream_loadd(2, sum + 512, 64); _tile_stream_loadd(3, sum + 768, 64);
  }
  for (int64_t k = 0; k < n_steps; k++, a += BLOCK<Code>, b += BLOCK<Code>) {
    _tile_stream_loadd(4, a, 64); _tile_stream_loadd(5, a + BLOCK<Code> / 2, 64);
    _tile_loadd(6, b, 64); _tile_loadd(7, b + BLOCK<Code> / 2, 64);
    if constexpr (sizeof(Code) == 1) {
      _tile_dpbssd(0, 4, 6); _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(2, 5, 6); _tile_dpbssd(3, 5, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
    }
    for (int64_t line = 0; line < n_lines; line++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
    last.some();
    if (place && k < 8) {
#pragma GCC unroll 4
      for (int64_t r = k * 4; r < k * 4 + 4; r++)
        _mm_prefetch((const char*)(place + r * place_stride), _MM_HINT_T1);
    }
  }
  last.rest();
  _tile_stored(0, sum, 64); _tile_stored(1, sum + 256, 64);
  _tile_stored(2, sum + 512, 64); _tile_stored(3, sum + 768, 64);
}

template <typename Code>
static void product(const Code* x, const Code* weight, Ending<Code> ending, int64_t K, float epsilon) {
  const int64_t n_depth = K / DEEP<Code>;
  const Shares shares(ending.M, n_depth, ending.O);
  const int64_t n_chunks = (n_depth + STEP - 1) / STEP;
  const int64_t step = (n_depth + n_chunks - 1) / n_chunks;
  // Rows that are deeper than the cache pass it once for each group of columns whose sums fit beside.
  const bool deep = shares.tall * n_depth * PAIR * 2 > ROW_BYTES;
  const int64_t wide = deep ? std::max<int64_t>(1, SUM_BYTES / (shares.tall * PAIR * 4)) : 1;
  const int64_t depth = deep ? step : n_depth;
  RowNorm* norms = nullptr;
  if (!ending.norms) {
    norms = (RowNorm*)std::malloc(shares.n_rows * 32 * sizeof(RowNorm));
    ending.norms = norms;
  }
  const TileShapes shapes;
#pragma omp parallel
  {
    TileSession session(shapes);
    float* sums = (float*)std::aligned_alloc(
        64, (n_chunks > 1 ? shares.tall * std::min(wide, shares.wide) : 1) * PAIR * sizeof(float));
    Ending<Code> last = ending;
    if constexpr (sizeof(Code) == 2)
      if (ending.columns) {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < shares.n_rows; i++)
          row_norms(x + i * n_depth * PAIR, n_depth, epsilon, norms + i * 32);
      }
#pragma omp for collapse(2) schedule(static)
    for (int64_t h = 0; h < shares.row_groups; h++)
      for (int64_t g = 0; g < shares.column_groups; g++) {
        const int64_t i0 = shares.row(h), i1 = shares.row(h + 1), j1 = shares.column(g + 1);
        const int64_t n_lines = (32 + i1 - i0 - 1) / (i1 - i0);
        for (int64_t j0 = shares.column(g); j0 < j1; j0 += wide)
          for (int64_t k0 = 0; k0 < n_depth; k0 += depth)
            for (int64_t j = j0; j < std::min(j0 + wide, j1); j++)
              for (int64_t k = k0; k < std::min(k0 + depth, n_depth); k += step) {
                const int64_t n_steps = std::min(step, n_depth - k);
                const Code* b = weight + (j * n_depth + k) * BLOCK<Code>;
                const char* next = (const char*)(b + (deep ? n_depth : n_steps) * BLOCK<Code>);
                const bool ends = k + n_steps == n_depth;
                for (int64_t i = i0; i < i1; i++) {
                  float* sum = sums + (n_chunks > 1 ? ((j - j0) * (i1 - i0) + i - i0) * PAIR : 0);
                  multiply(x + (i * n_depth + k) * BLOCK<Code>, b, n_steps, sum, k == 0, last,
                           next + (i - i0) * n_steps * n_lines * 64, n_lines,
                           ends ? ending.block(i, j + 1) : nullptr, ending.in_tiles ? 32 : ending.O);
                  if (ends) last.begin(sum, i, j);
                }
              }
        before_tile_load();
        last.rest();
      }
    std::free(sums);
  }
  std::free(norms);
}

}  // namespace

// y = gelu(norm(x) W^T + bias) + plus. x in tiles, y and plus [M, O] or in tiles.
//
// bf16: weight [O/32][K/32][2][16][16][2] by columns, depth, halves of the columns, pairs of depth, columns,
// pair; `columns` [O] are its sums over the depth, null without a norm. int8, where x has row_scales (of
// bocage_quantize, which takes the norm): weight [O/32][K/64][2][16][16][4]; `columns` are its scales.
extern "C" void bocage_product(const void* x, const void* row_scales, const void* weight,
                               const float* columns, const float* bias, const bf16* plus, bf16* y, int64_t M,
                               int64_t K, int64_t O, float epsilon, int64_t is_gelu, int64_t in_tiles) {
  auto run = [&](auto* codes) {
    using Code = std::remove_const_t<std::remove_pointer_t<decltype(codes)>>;
    Ending<Code> ending{bias, columns, plus, y, M, O, bool(is_gelu), bool(in_tiles)};
    ending.norms = (const RowNorm*)row_scales;
    product(codes, (const Code*)weight, ending, K, epsilon);
  };
  if (row_scales) run((const int8_t*)x);
  else run((const bf16*)x);
}

// Codes, in tiles, of bf16 rows in tiles, and for each row {0, scale}. A scale for each row: no sample
// depends on its batch mates. Normalized before, without gain, if is_norm.
extern "C" void bocage_quantize(const bf16* x, int8_t* codes, void* row_scales, int64_t M, int64_t D,
                                int64_t is_norm, float epsilon) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < (M + 31) / 32; i++) {
    RowNorm* norms = (RowNorm*)row_scales + i * 32;
    std::fill(norms, norms + 32, RowNorm{0, 1});
    if (is_norm) row_norms(x + i * 32 * D, D / 32, epsilon, norms);
    for (int64_t r = 0; r < 32; r += 4) {  // four rows are side by side in memory
      const bf16* from = x + i * 32 * D + r * 32;
      int8_t* to = codes + i * 32 * D + r * 64;
      __m512 most[4], mean[4], to_code[4];
      for (int q = 0; q < 4; q++) most[q] = _mm512_setzero_ps(), mean[q] = _mm512_set1_ps(norms[r + q].mean);
      for (int64_t c = 0; c < D; c += 32)
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
          const __m512 a = _mm512_sub_ps(load16(from + c * 32 + q * 32), mean[q]);
          const __m512 b = _mm512_sub_ps(load16(from + c * 32 + q * 32 + 16), mean[q]);
          most[q] = _mm512_max_ps(most[q], _mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
        }
      for (int q = 0; q < 4; q++) {
        const float largest = std::max(_mm512_reduce_max_ps(most[q]), 1e-20f);
        norms[r + q] = {0, largest * norms[r + q].scale / 127};
        to_code[q] = _mm512_set1_ps(127 / largest);
      }
      for (int64_t c = 0; c < D; c += 16)
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
          const __m512 v = _mm512_sub_ps(load16(from + c / 32 * 1024 + q * 32 + c % 32), mean[q]);
          const __m512i code = _mm512_cvtps_epi32(_mm512_mul_ps(v, to_code[q]));
          _mm_storeu_si128((__m128i*)(to + c / 64 * 2048 + q * 64 + c % 64), _mm512_cvtsepi32_epi8(code));
        }
    }
  }
}

// Rows x [M, D] to tiles; rows that the last tiles lack are zero.
extern "C" void bocage_to_tiles(const bf16* x, bf16* y, int64_t M, int64_t D) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < (M + 31) / 32; i++)
    for (int64_t r = 0; r < 32; r++) {
      const bf16* row = x + (i * 32 + r) * D;
      bf16* to = y + i * D * 32 + r * 32;
      for (int64_t c = 0; c < D; c += 32)
        _mm512_store_si512(to + c * 32, i * 32 + r < M ? _mm512_loadu_si512(row + c) : __m512i{});
    }
}

// Tiles x to rows y [M, D].
extern "C" void bocage_from_tiles(const bf16* x, bf16* y, int64_t M, int64_t D) {
#pragma omp parallel for schedule(static)
  for (int64_t m = 0; m < M; m++)
    for (int64_t c = 0; c < D; c += 32)
      _mm512_storeu_si512(y + m * D + c, _mm512_load_si512(x + m / 32 * D * 32 + c * 32 + m % 32 * 32));
}
