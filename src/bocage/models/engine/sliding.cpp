// Attention within a sliding box of a large grid of cells, where each cell holds the same number of
// elements (tokens of dates and sensors, or location queries).
//
// Cells are taken in squares of 4 x 4. One element of a square is a tile of 16 tokens, and a box is
// covered by whole tiles: 25 of them for a box of 16 x 16 cells, so 400 keys are read for 256 that
// count. Which keys of a tile count is a row mask and a column mask per query, 16 bits each.
//
// Packed rows of squares lie in a ring of slots, so memory holds the rows that are read and no more:
// q and k [slot][head][element][square][16 x HD], v [slot][head][element][HD / 16][square][16 x 16], so that
// neighboring squares are a pair (attention.h).
// One square of zeros follows the last.
//
// Axes: M heads, HD head width, P = HD / 2 channel pairs (p, p + P), E elements of a cell.

#include "attention.h"

#include <vector>

static constexpr int64_t SIDE = 4;  // of a square

struct Turns {  // cosine and sine of rows [h, M, 2, P], columns [w, M, 2, P], elements [E, M, 2, P] or null
  const float *rows, *columns, *elements;
  void angles(int64_t row, int64_t column, int64_t e, int64_t m, int64_t M, int64_t P, float* cos,
              float* sin) const {
    const int64_t n = 2 * P;
    add_angles({rows + (row * M + m) * n, columns + (column * M + m) * n,
                elements ? elements + (e * M + m) * n : nullptr},
               P, cos, sin);
  }
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
          alignas(64) Number key[16 * HD] = {};
          const Number* value[16] = {};
          Number* query = queries ? q + g.tile(i, m, e, j, HD) : nullptr;
          for (int c = 0; c < 16; c++) {
            const int64_t row = i * SIDE + c / SIDE, column = j * SIDE + c % SIDE;
            if (row >= first + n_rows || column >= g.w) {
              if (query) std::memset(query + c * HD, 0, HD * sizeof(Number));
              continue;
            }
            const int64_t token = ((row - first) * g.w + column) * E + e;
            turns.angles(row, column, e, m, M, HD / 2, cos, sin);
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
          put_keys<HD>(key, k + g.tile(i, m, e, j, HD));
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

// Attended out [n_rows, w, E of queries, M HD] of grid rows [first, first + n_rows). shown
// [squares, squares, E of keys]: bits of the 16 cells, or null where nothing is hidden.
template <int HD, typename Number>
static void attend_rows(const Number* q, const Number* k, const Number* v, const float* longest_q,
                        const float* longest_k, const uint16_t* shown, Number* out, int64_t first,
                        int64_t n_rows, const Grid& gq, const Grid& gk, int64_t window) {
  const Box by_row{gq.h, std::min(window, gq.h)}, by_column{gq.w, std::min(window, gq.w)};
  const int64_t M = gq.n_heads, D = M * HD, n_squares = gq.n_squares();
  const TileShapes shapes = attention_shapes(HD);
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
            const Number* from = q + gq.tile(i, m, e, j, HD);
            const int64_t step = gk.padded() * 256;
            auto to = [&](int64_t r, int64_t c) -> Number* {
              const int64_t row = i * SIDE + r / SIDE - first, column = j * SIDE + r % SIDE;
              if (row >= n_rows || column >= gq.w) return nullptr;
              return out + ((row * gq.w + column) * gq.n_elements + e) * D + m * HD + c;
            };
            if (pairs.empty()) {
              const __m512 nothing = _mm512_setzero_ps();
              for (int64_t r = 0; r < 16; r++)
                for (int64_t c = 0; c < HD; c += 16)
                  if (Number* y = to(r, c)) store16(y, nothing);
            } else if (far) {
              attend<HD, true>(from, pairs, step, to);
            } else {
              attend<HD, false>(from, pairs, step, to);
            }
          }
        }
  }
}

// See `pack`; tables in the order of Turns.
extern "C" void bocage_sliding_pack(const void* queries, int64_t q_stride, const void* keys,
                                    int64_t k_stride, void* q, void* k, void* v, float* longest_q,
                                    float* longest_k, int64_t is_fp32, int64_t head_width, int64_t first,
                                    int64_t n_rows, int64_t h, int64_t w, int64_t n_elements,
                                    int64_t n_heads, int64_t n_slots, const float* rows,
                                    const float* columns, const float* elements) {
  const Grid grid{h, w, n_elements, n_heads, n_slots};
  choose(is_fp32, head_width, [&](auto* number, auto width) {
    using Number = std::remove_pointer_t<decltype(number)>;
    pack<width>((const Number*)queries, q_stride, (const Number*)keys, k_stride, first, n_rows,
                grid, Turns{rows, columns, elements}, (Number*)q, (Number*)k, (Number*)v, longest_q,
                longest_k);
  });
}

// See `attend_rows`.
extern "C" void bocage_sliding_attend(const void* q, const void* k, const void* v,
                                      const float* longest_q, const float* longest_k,
                                      const uint16_t* shown, void* out, int64_t is_fp32,
                                      int64_t head_width, int64_t first, int64_t n_rows, int64_t h,
                                      int64_t w, int64_t n_queries, int64_t n_keys, int64_t n_heads,
                                      int64_t n_slots, int64_t window) {
  const Grid gq{h, w, n_queries, n_heads, n_slots}, gk{h, w, n_keys, n_heads, n_slots};
  choose(is_fp32, head_width, [&](auto* number, auto width) {
    using Number = std::remove_pointer_t<decltype(number)>;
    attend_rows<width>((const Number*)q, (const Number*)k, (const Number*)v, longest_q, longest_k,
                       shown, (Number*)out, first, n_rows, gq, gk, window);
  });
}
