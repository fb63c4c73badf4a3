// Attention within a sliding box of a large grid of cells, where each cell holds the same number of
// elements (tokens of dates and sensors, or location queries). bf16 on AMX tiles, fp32 in vectors.
//
// Cells are taken in squares of 4 x 4. One element of a square is a tile of 16 tokens, and a box is
// covered by whole tiles: 25 of them for a box of 16 x 16 cells, so 400 keys are read for 256 that
// count. Which keys of a tile count is a row mask and a column mask per query, 16 bits each.
//
// Packed rows of squares lie in a ring of slots, so memory holds the rows that are read and no more:
// q [slot][head][element][square][16][HD]; k the same in tiles, transposed; v
// [slot][head][element][HD / 16][square][16][16], so that neighboring squares are one tile of 32 keys.
// One square of zeros follows the last.
//
// Axes: M heads, HD head width, P = HD / 2 channel pairs (p, p + P), E elements of a cell.

#include "tiles.h"
#include "vectors.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <vector>

static constexpr int64_t SIDE = 4;  // of a square

struct Turns {  // cos and sin of rows [h, M, P], columns [w, M, P], elements [E, M, P] or null
  const float *row_cos, *row_sin, *column_cos, *column_sin, *element_cos, *element_sin;
};

struct Grid {
  int64_t h, w, n_elements, n_heads, n_slots;
  int64_t n_squares() const { return (w + SIDE - 1) / SIDE; }
  int64_t padded() const { return n_squares() + 1; }  // with the square of zeros

  int64_t tile(int64_t square_row, int64_t m, int64_t e, int64_t j, int64_t HD) const {
    return (((square_row % n_slots * n_heads + m) * n_elements + e) * padded() + j) * 16 * HD;
  }
  int64_t values(int64_t square_row, int64_t m, int64_t e, int64_t j, int64_t HD) const {
    return tile(square_row, m, e, 0, HD) + j * 256;  // next 16 channels: + padded() * 256
  }
  int64_t longest(int64_t square_row, int64_t m, int64_t j) const {
    return (square_row % n_slots * n_heads + m) * padded() + j;
  }
};

struct Box {  // cells that a cell reads along one axis: moved inward at the edges, never shrunk
  int64_t n, window;
  int64_t start(int64_t cell) const {
    return std::max<int64_t>(0, std::min(cell - window / 2, n - window));
  }
  int64_t first_square(int64_t square) const { return start(square * SIDE) / SIDE; }
  int64_t last_square(int64_t square) const {
    return (start(std::min(square * SIDE + SIDE, n) - 1) + window - 1) / SIDE;
  }
  // Bit t: cell t of a square lies in the box of `cell`.
  int bits(int64_t cell, int64_t square) const {
    const int64_t low = start(std::min(cell, n - 1)) - square * SIDE, high = low + window;
    int found = 0;
    for (int t = 0; t < SIDE; t++) found |= (t >= low && t < high) << t;
    return found;
  }
};

// cos and sin of one head of one token.
static void angles(const Turns& t, int64_t row, int64_t column, int64_t e, int64_t m, int64_t M,
                   int64_t P, float* cos, float* sin) {
  const int64_t r = (row * M + m) * P, c = (column * M + m) * P, o = (e * M + m) * P;
  for (int64_t p = 0; p < P; p += 8) {
    auto load = [p](const float* x, int64_t at) { return _mm256_loadu_ps(x + at + p); };
    const __m256 rc = load(t.row_cos, r), rs = load(t.row_sin, r);
    const __m256 cc = load(t.column_cos, c), cs = load(t.column_sin, c);
    __m256 x = _mm256_fmsub_ps(rc, cc, _mm256_mul_ps(rs, cs));
    __m256 y = _mm256_fmadd_ps(rs, cc, _mm256_mul_ps(rc, cs));
    if (t.element_cos) {
      const __m256 ec = load(t.element_cos, o), es = load(t.element_sin, o);
      const __m256 turned = _mm256_fmsub_ps(x, ec, _mm256_mul_ps(y, es));
      y = _mm256_fmadd_ps(x, es, _mm256_mul_ps(y, ec));
      x = turned;
    }
    _mm256_storeu_ps(cos + p, x);
    _mm256_storeu_ps(sin + p, y);
  }
}

static inline __m256 load8(const float* x) { return _mm256_loadu_ps(x); }
static inline __m256 load8(const bf16* x) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)x)), 16));
}
static inline void store8(float* y, __m256 x) { _mm256_storeu_ps(y, x); }
static inline void store8(bf16* y, __m256 x) {
  _mm_storeu_si128((__m128i*)y, (__m128i)_mm256_cvtneps_pbh(x));
}

// One head turned, times `scale`; returns its squared length.
template <typename Number>
static float turn(const Number* x, Number* y, int64_t P, const float* cos, const float* sin,
                  float scale) {
  __m256 squares = _mm256_setzero_ps();
  for (int64_t p = 0; p < P; p += 8) {
    const __m256 a = _mm256_mul_ps(load8(x + p), _mm256_set1_ps(scale));
    const __m256 b = _mm256_mul_ps(load8(x + p + P), _mm256_set1_ps(scale));
    const __m256 c = _mm256_loadu_ps(cos + p), s = _mm256_loadu_ps(sin + p);
    squares = _mm256_fmadd_ps(a, a, _mm256_fmadd_ps(b, b, squares));
    store8(y + p, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
    store8(y + p + P, _mm256_fmadd_ps(a, s, _mm256_mul_ps(b, c)));
  }
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(squares), _mm256_extractf128_ps(squares, 1));
  const __m128 two = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// Keys [16][HD] as the scores read them: bf16 [HD / 2][16][2], fp32 [HD][16].
template <int HD, typename Number>
static void transpose(const Number* x, Number* y) {
  constexpr int64_t step = HD * sizeof(Number) / 4;
  const __m512i rows = _mm512_mullo_epi32(
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
      _mm512_set1_epi32(step));
  for (int64_t i = 0; i < step; i++)
    _mm512_storeu_si512((char*)y + i * 64, _mm512_i32gather_epi32(rows, (const char*)x + i * 4, 4));
}

// 16 channels of the values of 16 tokens: bf16 [8][16][2], fp32 [16][16]. Null = zeros.
static void put_values(const bf16* const* rows, int64_t at, bf16* to) {
  for (int i = 0; i < 16; i += 2) {
    auto load = [&](int r) {
      return rows[r] ? _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)(rows[r] + at)))
                     : _mm512_setzero_si512();
    };
    _mm512_storeu_si512(to + i * 16, _mm512_or_si512(load(i), _mm512_slli_epi32(load(i + 1), 16)));
  }
}
static void put_values(const float* const* rows, int64_t at, float* to) {
  for (int i = 0; i < 16; i++)
    _mm512_storeu_ps(to + i * 16, rows[i] ? _mm512_loadu_ps(rows[i] + at) : _mm512_setzero_ps());
}

// Tokens of grid rows [first, first + n_rows) to the ring. `queries` of tokens `q_stride` apart (0: one for
// all) go to q; `keys`, followed by their values one width on, to k and v. Either may be null.
template <int HD, typename Number>
static void pack(const Number* queries, int64_t q_stride, const Number* keys, int64_t k_stride,
                 int64_t first, int64_t n_rows, const Grid& g, const Turns& turns, Number* q,
                 Number* k, Number* v, float* longest_q, float* longest_k) {
  const float scale = 1.4426950408889634f / std::sqrt(float(HD));  // exponentials are powers of 2
  const int64_t n_squares = g.n_squares(), M = g.n_heads, E = g.n_elements;
#pragma omp parallel for collapse(3) schedule(static)
  for (int64_t i = first / SIDE; i < (first + n_rows + SIDE - 1) / SIDE; i++)
    for (int64_t m = 0; m < M; m++)
      for (int64_t j = 0; j < n_squares; j++) {
        float most_q = 0, most_k = 0, cos[HD / 2], sin[HD / 2];
        for (int64_t e = 0; e < E; e++) {
          alignas(64) Number key[16 * HD];
          const Number* value[16];
          Number* query = queries ? q + g.tile(i, m, e, j, HD) : nullptr;
          for (int c = 0; c < 16; c++) {
            const int64_t row = i * SIDE + c / SIDE, column = j * SIDE + c % SIDE;
            value[c] = nullptr;
            if (row >= first + n_rows || column >= g.w) {
              if (query) std::memset(query + c * HD, 0, HD * sizeof(Number));
              std::memset(key + c * HD, 0, HD * sizeof(Number));
              continue;
            }
            const int64_t token = ((row - first) * g.w + column) * E + e;
            angles(turns, row, column, e, m, M, HD / 2, cos, sin);
            if (query)
              most_q = std::max(most_q, turn(queries + token * q_stride + m * HD, query + c * HD,
                                             HD / 2, cos, sin, scale));
            if (keys) {
              const Number* from = keys + token * k_stride + m * HD;
              most_k = std::max(most_k, turn(from, key + c * HD, HD / 2, cos, sin, 1));
              value[c] = from + M * HD;
            }
          }
          if (!keys) continue;
          transpose<HD>(key, k + g.tile(i, m, e, j, HD));
          for (int64_t c = 0; c < HD; c += 16)
            put_values(value, c, v + g.values(i, m, e, j, HD) + c / 16 * g.padded() * 256);
        }
        if (queries) longest_q[g.longest(i, m, j)] = std::sqrt(most_q);
        if (keys) longest_k[g.longest(i, m, j)] = std::sqrt(most_k);
      }
}

// Two tiles of keys side by side, or one and zeros.
template <typename Number>
struct Pair {
  const Number *k, *v;
  const uint16_t *rows, *columns;  // masks of 16 queries; those of the second tile 16 further
  uint16_t shown[2];
  bool both;
  __mmask16 mask(int r, int half) const { return rows[r] & columns[half * 16 + r] & shown[half]; }
};

static inline __m512 exponential(__m512 x, const bf16*) { return exp2_16(x); }

// 2^x to 1e-7: whole part into the exponent, the rest within -1/2 .. 1/2 by a polynomial of degree 6.
static inline __m512 exponential(__m512 x, const float*) {
  const __m512 f = _mm512_reduce_ps(x, 0x00);
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(1.5403530e-4f), f, _mm512_set1_ps(1.3333558e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1));
  return _mm512_scalef_ps(p, _mm512_sub_ps(x, f));
}

// Scores [2][16][16] of 16 queries and the keys of a pair, in units of log2.
template <int HD>
static inline void scores(const bf16* q, const Pair<bf16>& pair, float* s) {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (HD == 16) {  // tile 3 holds the queries, tile 4 has 8 rows
    _tile_loadd(4, pair.k, 64); _tile_dpbf16ps(0, 3, 4);
    _tile_loadd(4, pair.k + 256, 64); _tile_dpbf16ps(1, 3, 4);
  } else {
    for (int i = 0; i < HD; i += 32) {
      _tile_loadd(6, q + i, HD * sizeof(bf16));
      _tile_loadd(7, pair.k + i * 16, 64); _tile_dpbf16ps(0, 6, 7);
      _tile_loadd(7, pair.k + (i + HD) * 16, 64); _tile_dpbf16ps(1, 6, 7);
    }
  }
  _tile_stored(0, s, 64);
  _tile_stored(1, s + 256, 64);
}

template <int HD>
static inline void scores(const float* q, const Pair<float>& pair, float* s) {
  for (int half = 0; half < 1 + pair.both; half++) {
    const float* k = pair.k + half * 16 * HD;
    __m512 sum[16];
    for (auto& x : sum) x = _mm512_setzero_ps();
    for (int c = 0; c < HD; c++) {
      const __m512 keys = _mm512_loadu_ps(k + c * 16);
#pragma GCC unroll 16
      for (int r = 0; r < 16; r++)
        sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(q[r * HD + c]), keys, sum[r]);
    }
    for (int r = 0; r < 16; r++) _mm512_store_ps(s + half * 256 + r * 16, sum[r]);
  }
}

// Weighted sums of values: o [HD / 16][16][16], in tiles 2 to 5 for bf16.

template <int HD>
static inline void add_values(const bf16* p, const Pair<bf16>& pair, int64_t step, float*) {
  before_tile_load();
  if constexpr (HD == 16) {
    _tile_loadd(5, p, 64); _tile_loadd(6, pair.v, 64); _tile_dpbf16ps(2, 5, 6);
  } else {
    _tile_loadd(6, p, 64);
    _tile_loadd(7, pair.v, 64); _tile_dpbf16ps(2, 6, 7);
    _tile_loadd(7, pair.v + step, 64); _tile_dpbf16ps(3, 6, 7);
    if constexpr (HD == 64) {
      _tile_loadd(7, pair.v + 2 * step, 64); _tile_dpbf16ps(4, 6, 7);
      _tile_loadd(7, pair.v + 3 * step, 64); _tile_dpbf16ps(5, 6, 7);
    }
  }
}

template <int HD>
static inline void add_values(const float* p, const Pair<float>& pair, int64_t step, float* o) {
  const int n_keys = 16 + 16 * pair.both;
  for (int c = 0; c < HD / 16; c++, o += 256) {
    const float* v = pair.v + c * step;
    __m512 sum[16];
    for (int r = 0; r < 16; r++) sum[r] = _mm512_load_ps(o + r * 16);
    for (int key = 0; key < n_keys; key++) {
      const __m512 values = _mm512_loadu_ps(v + key * 16);
#pragma GCC unroll 16
      for (int r = 0; r < 16; r++)
        sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(p[key / 16 * 256 + r * 16 + key % 16]), values, sum[r]);
    }
    for (int r = 0; r < 16; r++) _mm512_store_ps(o + r * 16, sum[r]);
  }
}

// Shares of row r: bf16 rows of 32 keys, fp32 [2][16][16].
static inline void put_shares(bf16* p, int r, __m512 x0, __m512 x1) {
  _mm512_store_si512(p + r * 32, (__m512i)_mm512_cvtne2ps_pbh(x1, x0));
}
static inline void put_shares(float* p, int r, __m512 x0, __m512 x1) {
  _mm512_store_ps(p + r * 16, x0);
  _mm512_store_ps(p + 256 + r * 16, x1);
}

// 16 queries against all pairs: to[r] = 16-channel pieces of row r, null where there is no such query.
// Scores stay below 2^100 unless `shift`: then each row's maximum, found in a first pass, is subtracted.
template <int HD, bool shift, typename Number>
static void attend(const Number* q, const std::vector<Pair<Number>>& pairs, int64_t step,
                   Number* const* to) {
  alignas(64) float s[2][512], o[HD * 16] = {};
  alignas(64) Number p[512];
  __m512 sum[16], most[16];
  for (auto& x : sum) x = _mm512_setzero_ps();
  constexpr bool tiles = sizeof(Number) == 2;
  if constexpr (tiles && HD == 16) _tile_loadd(3, q, HD * sizeof(bf16));
  if constexpr (shift) {
    for (auto& x : most) x = _mm512_set1_ps(-INFINITY);
    for (const auto& pair : pairs) {
      scores<HD>(q, pair, s[0]);
      for (int r = 0; r < 16; r++)
        for (int half = 0; half < 1 + pair.both; half++)
          most[r] = _mm512_mask_max_ps(most[r], pair.mask(r, half), most[r],
                                       _mm512_load_ps(s[0] + half * 256 + r * 16));
    }
    for (auto& x : most) x = _mm512_set1_ps(_mm512_reduce_max_ps(x));
  }
  if constexpr (tiles) {
    _tile_zero(2);
    if constexpr (HD >= 32) _tile_zero(3);
    if constexpr (HD == 64) { _tile_zero(4); _tile_zero(5); }
  }
  const int64_t n = pairs.size();
  scores<HD>(q, pairs[0], s[0]);
  for (int64_t i = 0; i < n; i++) {
    // The tile unit works on the next pair while the vector units take exponentials.
    if (i + 1 < n) scores<HD>(q, pairs[i + 1], s[(i + 1) & 1]);
    const float* now = s[i & 1];
    const auto& pair = pairs[i];
    auto share = [&](int r, int half) {
      __m512 x = _mm512_load_ps(now + half * 256 + r * 16);
      if constexpr (shift) x = _mm512_sub_ps(x, most[r]);
      return _mm512_maskz_mov_ps(pair.mask(r, half), exponential(x, p));
    };
    if (pair.both) {
#pragma GCC unroll 16
      for (int r = 0; r < 16; r++) {
        const __m512 x0 = share(r, 0), x1 = share(r, 1);
        sum[r] = _mm512_add_ps(sum[r], _mm512_add_ps(x0, x1));
        put_shares(p, r, x0, x1);
      }
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < 16; r++) {
        const __m512 x0 = share(r, 0);
        sum[r] = _mm512_add_ps(sum[r], x0);
        put_shares(p, r, x0, _mm512_setzero_ps());
      }
    }
    add_values<HD>(p, pair, step, o);
  }
  if constexpr (tiles) {
    _tile_stored(2, o, 64);
    if constexpr (HD >= 32) _tile_stored(3, o + 256, 64);
    if constexpr (HD == 64) { _tile_stored(4, o + 512, 64); _tile_stored(5, o + 768, 64); }
  }
  for (int r = 0; r < 16; r++) {
    if (!to[r]) continue;
    const float total = _mm512_reduce_add_ps(sum[r]);
    const __m512 share = _mm512_set1_ps(total > 0 ? 1 / total : 0);  // nothing seen: zeros
    for (int i = 0; i < HD; i += 16)
      store16(to[r] + i, _mm512_mul_ps(_mm512_load_ps(o + i * 16 + r * 16), share));
  }
}

// Attended out [n_rows, w, E of queries, M HD] of grid rows [first, first + n_rows). shown
// [squares, squares, E of keys]: bits of the 16 cells, or null where nothing is hidden.
template <int HD, typename Number>
static void attend_rows(const Number* q, const Number* k, const Number* v, const float* longest_q,
                        const float* longest_k, const uint16_t* shown, Number* out, int64_t first,
                        int64_t n_rows, const Grid& gq, const Grid& gk, int64_t window) {
  const Box by_row{gq.h, std::min(window, gq.h)}, by_column{gq.w, std::min(window, gq.w)};
  const int64_t M = gq.n_heads, D = M * HD, n_squares = gq.n_squares();
  TileShapes shapes;
  if (HD == 16) {
    shapes.n_bytes[3] = 32;
    shapes.rows[4] = 8;
  }
#pragma omp parallel
  {
    TileSession session(shapes);
    std::vector<Pair<Number>> pairs;
    std::vector<uint16_t> row_masks, column_masks;
#pragma omp for collapse(3) schedule(static)
    for (int64_t i = first / SIDE; i < (first + n_rows + SIDE - 1) / SIDE; i++)
      for (int64_t m = 0; m < M; m++)
        for (int64_t j = 0; j < n_squares; j++) {
          const int64_t top = by_row.first_square(i), bottom = by_row.last_square(i) + 1;
          const int64_t left = by_column.first_square(j), right = by_column.last_square(j) + 1;
          row_masks.assign((bottom - top) * 16, 0);
          column_masks.assign((right - left + 1) * 16, 0);
          for (int c = 0; c < 16; c++) {
            for (int64_t a = top; a < bottom; a++) {
              const int bits = by_row.bits(i * SIDE + c / SIDE, a);
              for (int t = 0; t < SIDE; t++)
                row_masks[(a - top) * 16 + c] |= (bits >> t & 1) * (0xf << t * SIDE);
            }
            for (int64_t b = left; b < right; b++)
              column_masks[(b - left) * 16 + c] = by_column.bits(j * SIDE + c % SIDE, b) * 0x1111;
          }
          pairs.clear();
          float longest = 0;
          for (int64_t a = top; a < bottom; a++) {
            for (int64_t b = left; b < right; b++)
              longest = std::max(longest, longest_k[gk.longest(a, m, b)]);
            for (int64_t e = 0; e < gk.n_elements; e++)
              for (int64_t b = left; b < right; b += 2) {
                Pair<Number> pair{k + gk.tile(a, m, e, b, HD), v + gk.values(a, m, e, b, HD),
                                  &row_masks[(a - top) * 16], &column_masks[(b - left) * 16],
                                  {0xffff, 0xffff}, b + 1 < right};
                if (shown) {
                  const uint16_t* bits = shown + (a * n_squares + b) * gk.n_elements + e;
                  pair.shown[0] = bits[0], pair.shown[1] = pair.both ? bits[gk.n_elements] : 0;
                  if (!(pair.shown[0] | pair.shown[1])) continue;
                }
                pairs.push_back(pair);
              }
          }
          const bool far = longest * longest_q[gq.longest(i, m, j)] >= 100;
          for (int64_t e = 0; e < gq.n_elements; e++) {
            Number* to[16];
            for (int c = 0; c < 16; c++) {
              const int64_t row = i * SIDE + c / SIDE, column = j * SIDE + c % SIDE;
              to[c] = row < first + n_rows && column < gq.w
                          ? out + (((row - first) * gq.w + column) * gq.n_elements + e) * D + m * HD
                          : nullptr;
            }
            const Number* from = q + gq.tile(i, m, e, j, HD);
            const int64_t step = gk.padded() * 256;
            if (pairs.empty()) {
              for (auto* x : to)
                if (x) std::memset(x, 0, HD * sizeof(Number));
            } else if (far) {
              attend<HD, true>(from, pairs, step, to);
            } else {
              attend<HD, false>(from, pairs, step, to);
            }
          }
        }
  }
}

// Calls `run(Number*, head width as a constant)`; 1 where there is no kernel for the head width.
template <typename Run>
static int choose(int64_t is_fp32, int64_t head_width, Run run) {
  auto with = [&](auto width) {
    if (is_fp32) run((float*)nullptr, width);
    else run((bf16*)nullptr, width);
    return 0;
  };
  if (head_width == 16) return with(std::integral_constant<int, 16>());
  if (head_width == 32) return with(std::integral_constant<int, 32>());
  if (head_width == 64) return with(std::integral_constant<int, 64>());
  return 1;
}

// See `pack`. Tables of `turns` in the order of Turns; element tables may be null.
extern "C" int bocage_sliding_pack(const void* queries, int64_t q_stride, const void* keys,
                                   int64_t k_stride, void* q, void* k, void* v, float* longest_q,
                                   float* longest_k, int64_t is_fp32, int64_t head_width,
                                   int64_t first, int64_t n_rows, int64_t h, int64_t w,
                                   int64_t n_elements, int64_t n_heads, int64_t n_slots,
                                   const float* row_cos, const float* row_sin,
                                   const float* column_cos, const float* column_sin,
                                   const float* element_cos, const float* element_sin) {
  const Grid grid{h, w, n_elements, n_heads, n_slots};
  const Turns turns{row_cos, row_sin, column_cos, column_sin, element_cos, element_sin};
  return choose(is_fp32, head_width, [&](auto* number, auto width) {
    using Number = std::remove_pointer_t<decltype(number)>;
    pack<width>((const Number*)queries, q_stride, (const Number*)keys, k_stride, first, n_rows,
                grid, turns, (Number*)q, (Number*)k, (Number*)v, longest_q, longest_k);
  });
}

// See `attend_rows`.
extern "C" int bocage_sliding_attend(const void* q, const void* k, const void* v,
                                     const float* longest_q, const float* longest_k,
                                     const uint16_t* shown, void* out, int64_t is_fp32,
                                     int64_t head_width, int64_t first, int64_t n_rows, int64_t h,
                                     int64_t w, int64_t n_queries, int64_t n_keys, int64_t n_heads,
                                     int64_t n_slots, int64_t window) {
  const Grid gq{h, w, n_queries, n_heads, n_slots}, gk{h, w, n_keys, n_heads, n_slots};
  return choose(is_fp32, head_width, [&](auto* number, auto width) {
    using Number = std::remove_pointer_t<decltype(number)>;
    attend_rows<width>((const Number*)q, (const Number*)k, (const Number*)v, longest_q, longest_k,
                       shown, (Number*)out, first, n_rows, gq, gk, window);
  });
}

// Linux hands out the tile registers on request; 0 = granted.
extern "C" int bocage_request_tiles() { return int(syscall(SYS_arch_prctl, 0x1023, 18)); }
