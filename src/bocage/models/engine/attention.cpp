// Rotary encoding and attention of every head in one pass, ragged lengths (bf16), of tokens over
// themselves or of queries that are the same for all samples; rotary encoding alone, in place
// (fp32; torch's own attention follows).
//
// Axes: B batch, N tokens, M heads, HD head width, D = M HD, T times.

#include "tiles.h"
#include "vectors.h"

struct Rotation {  // cos and sin of time [B or 1, T, M, HD/2] and place [cells, M, HD/2]
  const float *time_cos, *time_sin, *place_cos, *place_sin;
  int64_t time_batch_stride;
  const int32_t *time, *place;  // of each token [B or 1, N]
  int64_t token_batch_stride;

  int64_t time_offset(int64_t b, int64_t n, int64_t m, int64_t n_heads, int64_t K) const {
    return b * time_batch_stride + (time[b * token_batch_stride + n] * n_heads + m) * K;
  }
  int64_t place_offset(int64_t b, int64_t n, int64_t m, int64_t n_heads, int64_t K) const {
    return (place[b * token_batch_stride + n] * n_heads + m) * K;
  }
};

static inline __m256 load8(const bf16* x) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)x)), 16));
}

static inline __m256 load8(const float* x) { return _mm256_loadu_ps(x); }

static inline void store8(bf16* y, __m256 x) {
  _mm_storeu_si128((__m128i*)y, (__m128i)_mm256_cvtneps_pbh(x));
}

static inline void store8(float* y, __m256 x) { _mm256_storeu_ps(y, x); }

// One head of one token, times `scale`; its channel pairs are (k, k + K) and the angle is that of
// its time plus that of its place. Returns the squared length.
template <typename Number>
static inline float rotate(const Number* x, Number* y, int K, const Rotation* r, int64_t time,
                           int64_t place, float scale) {
  const __m256 scales = _mm256_set1_ps(scale);
  __m256 squares = _mm256_setzero_ps();
  for (int k = 0; k < K; k += 8) {
    __m256 a = load8(x + k), b = load8(x + k + K);
    a = _mm256_mul_ps(a, scales), b = _mm256_mul_ps(b, scales);
    squares = _mm256_fmadd_ps(a, a, _mm256_fmadd_ps(b, b, squares));
    if (r) {
      const __m256 tc = _mm256_loadu_ps(r->time_cos + time + k);
      const __m256 ts = _mm256_loadu_ps(r->time_sin + time + k);
      const __m256 pc = _mm256_loadu_ps(r->place_cos + place + k);
      const __m256 ps = _mm256_loadu_ps(r->place_sin + place + k);
      const __m256 c = _mm256_fmsub_ps(tc, pc, _mm256_mul_ps(ts, ps));
      const __m256 s = _mm256_fmadd_ps(ts, pc, _mm256_mul_ps(tc, ps));
      const __m256 turned = _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s));
      b = _mm256_fmadd_ps(a, s, _mm256_mul_ps(b, c));
      a = turned;
    }
    store8(y + k, a);
    store8(y + k + K, b);
  }
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(squares), _mm256_extractf128_ps(squares, 1));
  const __m128 two = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// Where attended tokens go: rows [B N, D], or tiles [B N / 32][D / 32][2][16][32].
struct Tokens {
  bf16* x;
  int64_t D;
  bool in_tiles;
  bf16* at(int64_t row, int64_t column) const {
    if (!in_tiles) return x + row * D + column;
    return x + row / 32 * 32 * D + column / 32 * 1024 + row % 32 * 32 + column % 32;
  }
};

// One head of one sample, laid out for tiles.
template <int HD>
struct Head {
  static constexpr int64_t size(int64_t n_padded) { return 3 * n_padded * HD; }
  bf16 *q, *k, *v;  // q rows; k per 16 tokens [HD/2][16][2]; v per 32 tokens [HD/16][16][16][2]
  Head(bf16* memory, int64_t n_padded)
      : q(memory), k(memory + n_padded * HD), v(memory + 2 * n_padded * HD) {}

  // Tokens of rows [q, k, v], or [k, v] without queries of their own. Returns the product of the
  // largest lengths of a query and a key, which no score exceeds; without queries the key's.
  template <bool with_q>
  float pack(const bf16* tokens, int64_t n_tokens, const Rotation* r, int64_t b, int64_t m,
             int64_t n_heads, float scale) {
    const int64_t D = n_heads * HD, stride = (2 + with_q) * D, at_k = with_q * D, at_v = at_k + D;
    float longest_q = 0, longest_k = 0;
    for (int64_t first = 0; first < n_tokens; first += 16) {
      alignas(64) bf16 key[16 * HD];
      const int n_rows = std::min<int64_t>(16, n_tokens - first);
      for (int i = 0; i < n_rows; i++) {
        const int64_t n = first + i;
        const bf16* row = tokens + n * stride + m * HD;
        const int64_t time = r ? r->time_offset(b, n, m, n_heads, HD / 2) : 0;
        const int64_t place = r ? r->place_offset(b, n, m, n_heads, HD / 2) : 0;
        if (with_q)
          longest_q = std::max(longest_q, rotate(row, q + n * HD, HD / 2, r, time, place, scale));
        longest_k =
            std::max(longest_k, rotate(row + at_k, key + i * HD, HD / 2, r, time, place, 1));
      }
      if (n_rows < 16) {
        if (with_q)
          std::memset(q + (first + n_rows) * HD, 0, (16 - n_rows) * HD * sizeof(bf16));
        std::memset(key + n_rows * HD, 0, (16 - n_rows) * HD * sizeof(bf16));
      }
      transpose_pairs(key, k + first * HD);
      for (int i = 0; i < 16; i += 2) {
        const int64_t n = first + i;
        const bf16* row = tokens + n * stride + at_v + m * HD;
        bf16* to = v + n / 32 * 32 * HD + n % 32 / 2 * 32;
        for (int c = 0; c < HD; c += 16) {
          __m512i even = _mm512_setzero_si512(), odd = even;
          if (i < n_rows) even = widen(row + c);
          if (i + 1 < n_rows) odd = widen(row + stride + c);
          _mm512_store_si512(to + c * 32, _mm512_or_si512(even, _mm512_slli_epi32(odd, 16)));
        }
      }
    }
    if ((n_tokens + 15) / 16 % 2) {  // blocks of keys are 32 wide
      const int64_t n = (n_tokens + 15) / 16 * 16;
      std::memset(k + n * HD, 0, 16 * HD * sizeof(bf16));
      for (int c = 0; c < HD; c += 16)
        std::memset(v + n / 32 * 32 * HD + c * 32 + 256, 0, 256 * sizeof(bf16));
    }
    return std::sqrt(with_q ? longest_q * longest_k : longest_k);
  }

  static __m512i widen(const bf16* x) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x));
  }

  // 16 rows of HD/2 pairs to HD/2 rows of 16 pairs.
  static void transpose_pairs(const bf16* x, bf16* y) {
    const __m512i rows = _mm512_mullo_epi32(
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        _mm512_set1_epi32(HD / 2));
    for (int i = 0; i < HD / 2; i++)
      _mm512_store_si512(y + i * 32, _mm512_i32gather_epi32(rows, x + i * 2, 4));
  }
};

// Scores of 16 queries and the 32 keys of block j, in units of log2.
template <int HD>
static inline void scores(const bf16* q, const bf16* k, int64_t j, float* s) {
  const bf16* keys = k + j * 32 * HD;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (HD == 16) {  // tile 3 holds the queries, tile 4 has 8 rows
    _tile_loadd(4, keys, 64); _tile_dpbf16ps(0, 3, 4);
    _tile_loadd(4, keys + 16 * HD, 64); _tile_dpbf16ps(1, 3, 4);
  } else {
    for (int i = 0; i < HD; i += 32) {
      _tile_loadd(6, q + i, HD * sizeof(bf16));
      _tile_loadd(7, keys + i * 16, 64); _tile_dpbf16ps(0, 6, 7);
      _tile_loadd(7, keys + (i + HD) * 16, 64); _tile_dpbf16ps(1, 6, 7);
    }
  }
  _tile_stored(0, s, 64);
  _tile_stored(1, s + 256, 64);
}

// 16 queries against all keys. Scores stay below 2^100 unless `shift`: then each row's maximum,
// found in a first pass, is subtracted. So no running maximum is needed and the output stays in tiles.
template <int HD, bool shift>
static void attend(const bf16* q, const Head<HD>& head, int64_t n_tokens, int64_t n_rows,
                   const Tokens& out, int64_t row, int64_t column) {
  alignas(64) float s[2][512], o[HD * 16];
  alignas(64) bf16 p[512];
  __m512 sum[16], most[16];
  const __m512 least = _mm512_set1_ps(-126);
  const int64_t n_blocks = (n_tokens + 31) / 32;
  for (auto& x : sum) x = _mm512_setzero_ps();
  if constexpr (HD == 16) _tile_loadd(3, q, HD * sizeof(bf16));
  if constexpr (shift) {
    for (auto& x : most) x = _mm512_set1_ps(-INFINITY);
    for (int64_t j = 0; j < n_blocks; j++) {
      scores<HD>(q, head.k, j, s[0]);
      const __mmask16 m0 = first_lanes(n_tokens - j * 32), m1 = first_lanes(n_tokens - j * 32 - 16);
      for (int r = 0; r < 16; r++) {
        most[r] = _mm512_mask_max_ps(most[r], m0, most[r], _mm512_load_ps(s[0] + r * 16));
        most[r] = _mm512_mask_max_ps(most[r], m1, most[r], _mm512_load_ps(s[0] + 256 + r * 16));
      }
    }
    for (auto& x : most) x = _mm512_set1_ps(_mm512_reduce_max_ps(x));
  }
  _tile_zero(2);
  if constexpr (HD == 64) {
    _tile_zero(3); _tile_zero(4); _tile_zero(5);
  }
  scores<HD>(q, head.k, 0, s[0]);
  for (int64_t j = 0; j < n_blocks; j++) {
    // The tile unit works on the next block while the vector units take exponentials.
    if (j + 1 < n_blocks) scores<HD>(q, head.k, j + 1, s[(j + 1) & 1]);
    const float* now = s[j & 1];
    const __mmask16 m0 = first_lanes(n_tokens - j * 32), m1 = first_lanes(n_tokens - j * 32 - 16);
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++) {
      __m512 x0 = _mm512_load_ps(now + r * 16), x1 = _mm512_load_ps(now + 256 + r * 16);
      if constexpr (shift) {  // a share below 2^-126 is none, and slow to compute; NaN stays NaN
        x0 = _mm512_max_ps(least, _mm512_sub_ps(x0, most[r]));
        x1 = _mm512_max_ps(least, _mm512_sub_ps(x1, most[r]));
      }
      x0 = _mm512_maskz_mov_ps(m0, exp2_16(x0)), x1 = _mm512_maskz_mov_ps(m1, exp2_16(x1));
      sum[r] = _mm512_add_ps(sum[r], _mm512_add_ps(x0, x1));
      _mm512_store_si512(p + r * 32, (__m512i)_mm512_cvtne2ps_pbh(x1, x0));
    }
    const bf16* values = head.v + j * 32 * HD;
    before_tile_load();
    if constexpr (HD == 16) {
      _tile_loadd(5, p, 64); _tile_loadd(6, values, 64); _tile_dpbf16ps(2, 5, 6);
    } else {
      _tile_loadd(6, p, 64);
      _tile_loadd(7, values, 64); _tile_dpbf16ps(2, 6, 7);
      _tile_loadd(7, values + 512, 64); _tile_dpbf16ps(3, 6, 7);
      _tile_loadd(7, values + 1024, 64); _tile_dpbf16ps(4, 6, 7);
      _tile_loadd(7, values + 1536, 64); _tile_dpbf16ps(5, 6, 7);
    }
  }
  _tile_stored(2, o, 64);
  if constexpr (HD == 64) {
    _tile_stored(3, o + 256, 64); _tile_stored(4, o + 512, 64); _tile_stored(5, o + 768, 64);
  }
  for (int64_t r = 0; r < n_rows; r++) {
    const __m512 share = _mm512_set1_ps(1 / _mm512_reduce_add_ps(sum[r]));
    for (int i = 0; i < HD; i += 16)
      store16(out.at(row + r, column + i), _mm512_mul_ps(_mm512_load_ps(o + i * 16 + r * 16), share));
  }
}

// Queries that all samples share: already turned, scaled and padded to 16, q [M, n padded, HD], the
// longest of each head in longest [M].
struct Queries {
  const bf16* q;
  const float* longest;
  int64_t n;
  int64_t n_padded() const { return (n + 15) / 16 * 16; }
};

// Attention over tokens that bring queries of their own, or of those that are `shared`.
template <int HD, bool own>
static void attention_of(const bf16* tokens, const Queries& shared, const Tokens& out, int64_t B,
                         int64_t N, int64_t M, const int64_t* lengths, const Rotation* rotation) {
  // Exponentials are powers of 2.
  const float scale = own ? 1.4426950408889634f / std::sqrt(float(HD)) : 1;
  const int64_t n_padded = (N + 31) / 32 * 32, stride = (2 + own) * M * HD;
  const int64_t n_queries = own ? N : shared.n;
  const int64_t size = Head<HD>::size(n_padded);
  bf16* memory = (bf16*)std::aligned_alloc(64, B * M * size * sizeof(bf16));
  float* bound = (float*)std::malloc(B * M * sizeof(float));
  TileShapes shapes;
  if (HD == 16) {
    shapes.n_bytes[3] = 32;
    shapes.rows[4] = 8;
  }
#pragma omp parallel
  {
    TileSession session(shapes);
#pragma omp for collapse(2) schedule(static)
    for (int64_t b = 0; b < B; b++)
      for (int64_t m = 0; m < M; m++) {
        Head<HD> head(memory + (b * M + m) * size, n_padded);
        const int64_t n = lengths ? lengths[b] : N;
        const float longest =
            head.template pack<own>(tokens + b * N * stride, n, rotation, b, m, M, scale);
        bound[b * M + m] = own ? longest : shared.longest[m] * longest;
      }
#pragma omp for collapse(3) schedule(static)
    for (int64_t b = 0; b < B; b++)
      for (int64_t m = 0; m < M; m++)
        for (int64_t first = 0; first < n_queries; first += 16) {
          const int64_t n = lengths ? lengths[b] : N;
          const int64_t n_rows = std::min<int64_t>(16, (own ? n : n_queries) - first);
          if (n_rows <= 0) continue;
          const Head<HD> head(memory + (b * M + m) * size, n_padded);
          const bf16* q = own ? head.q + first * HD : shared.q + (m * shared.n_padded() + first) * HD;
          const int64_t row = b * n_queries + first;
          if (bound[b * M + m] < 100) attend<HD, false>(q, head, n, n_rows, out, row, m * HD);
          else attend<HD, true>(q, head, n, n_rows, out, row, m * HD);
        }
  }
  std::free(bound);
  std::free(memory);
}

template <bool own>
static int attention(int64_t head_width, const bf16* tokens, const Queries& shared, const Tokens& out,
                     int64_t B, int64_t N, int64_t M, const int64_t* lengths, const Rotation& rotation) {
  const Rotation* r = rotation.time_cos ? &rotation : nullptr;
  if (head_width == 16) attention_of<16, own>(tokens, shared, out, B, N, M, lengths, r);
  else if (head_width == 64) attention_of<64, own>(tokens, shared, out, B, N, M, lengths, r);
  else return 1;
  return 0;
}

// Attention out [B, N, D], or that in tiles, of qkv [B, N, 3 D]; lengths [B] or null. Rotation pointers
// may be null.
extern "C" int bocage_attention(const bf16* qkv, bf16* out, int64_t in_tiles, int64_t B, int64_t N, int64_t M,
                                int64_t head_width, const int64_t* lengths,
                                const float* time_cos, const float* time_sin, const float* place_cos,
                                const float* place_sin, int64_t time_batch_stride,
                                const int32_t* time, const int32_t* place,
                                int64_t token_batch_stride) {
  const Rotation rotation{time_cos, time_sin, place_cos, place_sin, time_batch_stride,
                          time,     place,    token_batch_stride};
  const Tokens to{out, M * head_width, bool(in_tiles)};
  return attention<true>(head_width, qkv, Queries{}, to, B, N, M, lengths, rotation);
}

// Attention out [B, R, D] of queries q [M, R padded to 16, HD], times log2(e) / sqrt(HD) and turned,
// over kv [B, N, 2 D]; lengths [B] or null, none of them 0.
extern "C" int bocage_reading(const bf16* q, const float* longest_q, const bf16* kv, bf16* out,
                              int64_t B, int64_t R, int64_t N, int64_t M, int64_t head_width,
                              const int64_t* lengths, const float* time_cos, const float* time_sin,
                              const float* place_cos, const float* place_sin,
                              int64_t time_batch_stride, const int32_t* time, const int32_t* place,
                              int64_t token_batch_stride) {
  const Rotation rotation{time_cos, time_sin, place_cos, place_sin, time_batch_stride,
                          time,     place,    token_batch_stride};
  const Tokens to{out, M * head_width, false};
  return attention<false>(head_width, kv, Queries{q, longest_q, R}, to, B, N, M, lengths, rotation);
}

// Rotary encoding in place of the first `n_turned` of the `n_parts` vectors of each fp32 token
// x [B, N, n_parts D].
extern "C" void bocage_rotate_parts(float* x, int64_t B, int64_t N, int64_t M, int64_t head_width,
                                    int64_t n_parts, int64_t n_turned, const float* time_cos,
                                    const float* time_sin, const float* place_cos,
                                    const float* place_sin, int64_t time_batch_stride,
                                    const int32_t* time, const int32_t* place,
                                    int64_t token_batch_stride) {
  const Rotation r{time_cos, time_sin, place_cos, place_sin, time_batch_stride,
                   time,     place,    token_batch_stride};
  const int64_t K = head_width / 2, D = M * head_width;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t b = 0; b < B; b++)
    for (int64_t n = 0; n < N; n++)
      for (int64_t m = 0; m < M; m++) {
        const int64_t t = r.time_offset(b, n, m, M, K), p = r.place_offset(b, n, m, M, K);
        float* head = x + (b * N + n) * n_parts * D + m * head_width;
        for (int64_t i = 0; i < n_turned; i++) rotate(head + i * D, head + i * D, K, &r, t, p, 1);
      }
}
