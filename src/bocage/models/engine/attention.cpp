// Rotary encoding and attention of every head in one pass, over ragged lengths: of tokens over themselves, or
// of queries that are the same for all samples.
//
// Axes: B batch, N tokens, M heads, HD head width, D = M HD, T times.

#include "attention.h"

struct Rotation {  // cosine and sine of times [B or 1, T, M, 2, HD/2] and of places [cells, M, 2, HD/2]
  const float *times, *places;  // null: no part of the angle
  int64_t times_of_sample;      // numbers from one sample to the next, 0 = all have the same
  const int32_t *time, *place;  // of each token [B or 1, N]
  int64_t tokens_of_sample;

  void angles(int64_t b, int64_t n, int64_t m, int64_t M, int64_t P, float* cos, float* sin) const {
    const int64_t token = b * tokens_of_sample + n, size = 2 * P;
    add_angles({times ? times + b * times_of_sample + (time[token] * M + m) * size : nullptr,
                places ? places + (place[token] * M + m) * size : nullptr},
               P, cos, sin);
  }
};

// Where attended tokens go: rows [B N, D], or tiles [B N / 32][D / 32][2][16][32]. What is at hand begins at
// `row` and `column` and has n_rows.
template <typename Number>
struct Tokens {
  Number* x;
  int64_t D;
  bool in_tiles;
  int64_t row = 0, column = 0, n_rows = 0;

  Number* operator()(int64_t r, int64_t c) const {
    if (r >= n_rows) return nullptr;
    const int64_t i = row + r, j = column + c;
    if (!in_tiles) return x + i * D + j;
    return x + i / 32 * 32 * D + j / 32 * 1024 + i % 32 * 32 + j % 32;
  }
};

// One head of one sample: q rows, k in pieces of 16 tokens, v in pieces of 32 [HD/16][2][16 x 16].
template <int HD, typename Number>
struct Head {
  Number *q, *k, *v;
  int64_t n_tokens = 0;

  Head(Number* memory, int64_t n_padded)
      : q(memory), k(memory + n_padded * HD), v(memory + 2 * n_padded * HD) {}

  // Tokens of rows [q, k, v], or [k, v] without queries of their own. Returns the product of the
  // largest lengths of a query and a key, which no score exceeds; without queries the key's.
  template <bool with_q>
  float pack(const Number* tokens, int64_t n, const Rotation& rotation, int64_t b, int64_t m, int64_t M) {
    const int64_t D = M * HD, at_k = with_q * D, stride = at_k + 2 * D;
    const float scale = 1.4426950408889634f / std::sqrt(float(HD));  // exponentials are powers of 2
    float longest_q = 0, longest_k = 0;
    for (int64_t first = 0; first < n; first += 16) {
      alignas(64) Number key[16 * HD] = {};
      const Number* value[16] = {};
      for (int i = 0; i < 16; i++) {
        if (first + i >= n) {
          if (with_q) std::memset(q + (first + i) * HD, 0, HD * sizeof(Number));
          continue;
        }
        float cos[HD / 2], sin[HD / 2];
        rotation.angles(b, first + i, m, M, HD / 2, cos, sin);
        const Number* row = tokens + (first + i) * stride + m * HD;
        if (with_q)
          longest_q = std::max(longest_q, turn(row, q + (first + i) * HD, HD / 2, cos, sin, scale));
        longest_k = std::max(longest_k, turn(row + at_k, key + i * HD, HD / 2, cos, sin, 1));
        value[i] = row + at_k + D;
      }
      put_keys<HD>(key, k + first * HD);
      for (int c = 0; c < HD; c += 16)
        put_values(value, c, v + first / 32 * 32 * HD + c * 32 + first % 32 * 16);
    }
    if ((n + 15) / 16 % 2)  // the last piece is multiplied as a pair
      for (int c = 0; c < HD; c += 16)
        std::memset(v + n / 32 * 32 * HD + c * 32 + 256, 0, 256 * sizeof(Number));
    n_tokens = n;
    return std::sqrt(with_q ? longest_q * longest_k : longest_k);
  }

  struct Pair {
    const Number *k, *v;
    bool both;
    __mmask16 masks[2];
    __mmask16 mask(int, int half) const { return masks[half]; }
  };
  int64_t size() const { return (n_tokens + 31) / 32; }
  Pair operator[](int64_t i) const {
    const int64_t rest = n_tokens - i * 32;
    return {k + i * 32 * HD, v + i * 32 * HD, rest > 16, {first_lanes(rest), first_lanes(rest - 16)}};
  }
};

// Queries that all samples share: already turned, scaled and padded to 16, q [M, n padded, HD], the
// longest of each head in longest [M].
template <typename Number>
struct Queries {
  const Number* q;
  const float* longest;
  int64_t n;
};

// Attention over tokens that bring queries of their own, or of those that are `shared`.
template <int HD, bool own, typename Number>
static void attention(const Number* tokens, const Queries<Number>& shared, const Tokens<Number>& out,
                      int64_t B, int64_t N, int64_t M, const int64_t* lengths, const Rotation& rotation) {
  const int64_t n_padded = (N + 31) / 32 * 32, stride = (2 + own) * M * HD;
  const int64_t n_queries = own ? N : shared.n, size = 3 * n_padded * HD;
  Number* memory = (Number*)std::aligned_alloc(64, B * M * size * sizeof(Number));
  float* bound = (float*)std::malloc(B * M * sizeof(float));
  const TileShapes shapes = attention_shapes(HD);
#pragma omp parallel
  {
    TileSession session(shapes);
#pragma omp for collapse(2) schedule(static)
    for (int64_t b = 0; b < B; b++)
      for (int64_t m = 0; m < M; m++) {
        Head<HD, Number> head(memory + (b * M + m) * size, n_padded);
        const float longest = head.template pack<own>(tokens + b * N * stride, lengths ? lengths[b] : N,
                                                      rotation, b, m, M);
        bound[b * M + m] = own ? longest : shared.longest[m] * longest;
      }
#pragma omp for collapse(3) schedule(static)
    for (int64_t b = 0; b < B; b++)
      for (int64_t m = 0; m < M; m++)
        for (int64_t first = 0; first < n_queries; first += 16) {
          Head<HD, Number> head(memory + (b * M + m) * size, n_padded);
          head.n_tokens = lengths ? lengths[b] : N;
          Tokens<Number> to = out;
          to.row = b * n_queries + first, to.column = m * HD;
          to.n_rows = (own ? head.n_tokens : n_queries) - first;
          if (to.n_rows <= 0) continue;
          const Number* q =
              own ? head.q + first * HD : shared.q + (m * ((shared.n + 15) / 16 * 16) + first) * HD;
          if (bound[b * M + m] < 100) attend<HD, false>(q, head, 512, to);
          else attend<HD, true>(q, head, 512, to);
        }
  }
  std::free(bound);
  std::free(memory);
}

// Attention out [B, N, D], or that in tiles, of qkv [B, N, 3 D]; lengths [B] or null.
extern "C" void bocage_attention(const void* qkv, void* out, int64_t is_fp32, int64_t in_tiles, int64_t B,
                                 int64_t N, int64_t M, int64_t head_width, const int64_t* lengths,
                                 const float* times, const float* places, int64_t times_of_sample,
                                 const int32_t* time, const int32_t* place, int64_t tokens_of_sample) {
  const Rotation rotation{times, places, times_of_sample, time, place, tokens_of_sample};
  choose(is_fp32, head_width, [&](auto* number, auto width) {
    using Number = std::remove_pointer_t<decltype(number)>;
    attention<width, true, Number>((const Number*)qkv, {}, {(Number*)out, M * head_width, bool(in_tiles)},
                                   B, N, M, lengths, rotation);
  });
}

// Attention out [B, R, D], or that in tiles, of queries q [M, R padded to 16, HD], times log2(e) / sqrt(HD) and turned,
// over kv [B, N, 2 D]; lengths [B] or null, none of them 0.
extern "C" void bocage_reading(const void* q, const float* longest_q, const void* kv, void* out,
                               int64_t is_fp32, int64_t in_tiles, int64_t B, int64_t R, int64_t N, int64_t M,
                               int64_t head_width, const int64_t* lengths, const float* times,
                               const float* places, int64_t times_of_sample, const int32_t* time,
                               const int32_t* place, int64_t tokens_of_sample) {
  const Rotation rotation{times, places, times_of_sample, time, place, tokens_of_sample};
  choose(is_fp32, head_width, [&](auto* number, auto width) {
    using Number = std::remove_pointer_t<decltype(number)>;
    attention<width, false, Number>((const Number*)kv, {(const Number*)q, longest_q, R},
                                    {(Number*)out, M * head_width, bool(in_tiles)}, B, N, M, lengths, rotation);
  });
}
