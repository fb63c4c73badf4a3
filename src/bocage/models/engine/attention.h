// What the two kinds of attention share: how a head is laid out, and 16 queries over all their keys. bf16
// runs on AMX tiles, fp32 in vectors.
//
// Tokens are taken 16 at a time. Queries are rows [16][HD]; keys are turned on their side, bf16
// [HD / 2][16][2] and fp32 [HD][16]; values lie by 16 channels, bf16 [8][16][2] and fp32 [16][16]. Two such
// pieces of keys that follow each other are a pair: 32 keys, the depth of a tile of values.
//
// Axes: HD head width, P = HD / 2 channel pairs (p, p + P) that rotate.

#pragma once

#include "tiles.h"
#include "vectors.h"

#include <initializer_list>
#include <type_traits>

static inline __m256 load8(const float* x) { return _mm256_loadu_ps(x); }

static inline __m256 load8(const bf16* x) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)x)), 16));
}

static inline void store8(float* y, __m256 x) { _mm256_storeu_ps(y, x); }

static inline void store8(bf16* y, __m256 x) {
  _mm_storeu_si128((__m128i*)y, (__m128i)_mm256_cvtneps_pbh(x));
}

// Cosine and sine [P] of a sum of angles; of each part a table gives [2, P], or null where it is zero.
static inline void add_angles(std::initializer_list<const float*> parts, int64_t P, float* cos,
                              float* sin) {
  for (int64_t p = 0; p < P; p += 8) {
    __m256 c = _mm256_set1_ps(1), s = _mm256_setzero_ps();
    for (const float* part : parts) {
      if (!part) continue;
      const __m256 c1 = _mm256_loadu_ps(part + p), s1 = _mm256_loadu_ps(part + P + p);
      const __m256 turned = _mm256_fmsub_ps(c, c1, _mm256_mul_ps(s, s1));
      s = _mm256_fmadd_ps(s, c1, _mm256_mul_ps(c, s1));
      c = turned;
    }
    _mm256_storeu_ps(cos + p, c);
    _mm256_storeu_ps(sin + p, s);
  }
}

// One head of one token turned, times `scale`; returns its squared length.
template <typename Number>
static inline float turn(const Number* x, Number* y, int64_t P, const float* cos, const float* sin,
                         float scale) {
  const __m256 scales = _mm256_set1_ps(scale);
  __m256 squares = _mm256_setzero_ps();
  for (int64_t p = 0; p < P; p += 8) {
    const __m256 a = _mm256_mul_ps(load8(x + p), scales), b = _mm256_mul_ps(load8(x + p + P), scales);
    const __m256 c = _mm256_loadu_ps(cos + p), s = _mm256_loadu_ps(sin + p);
    squares = _mm256_fmadd_ps(a, a, _mm256_fmadd_ps(b, b, squares));
    store8(y + p, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
    store8(y + p + P, _mm256_fmadd_ps(a, s, _mm256_mul_ps(b, c)));
  }
  const __m128 half = _mm_add_ps(_mm256_castps256_ps128(squares), _mm256_extractf128_ps(squares, 1));
  const __m128 two = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// 16 keys [16][HD] on their side.
template <int HD, typename Number>
static void put_keys(const Number* x, Number* y) {
  constexpr int64_t step = HD * sizeof(Number) / 4;
  const __m512i rows = _mm512_mullo_epi32(
      _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
      _mm512_set1_epi32(step));
  for (int64_t i = 0; i < step; i++)
    _mm512_storeu_si512((char*)y + i * 64, _mm512_i32gather_epi32(rows, (const char*)x + i * 4, 4));
}

// Channels [at, at + 16) of the values of 16 tokens; null = zeros.
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

// Tiles of bf16: 0 and 1 scores, 2 to 5 sums of values, 3 the queries where heads are 16 wide, which leaves
// half of a tile of queries and of keys (4) unused.
static inline TileShapes attention_shapes(int head_width) {
  TileShapes shapes;
  if (head_width == 16) shapes.n_bytes[3] = 32, shapes.rows[4] = 8;
  return shapes;
}

// Scores [2][16][16] of 16 queries and a pair of keys, in units of log2.
template <int HD>
static inline void scores(const bf16* q, const bf16* k, bool, float* s) {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (HD == 16) {
    _tile_loadd(4, k, 64); _tile_dpbf16ps(0, 3, 4);
    _tile_loadd(4, k + 256, 64); _tile_dpbf16ps(1, 3, 4);
  } else {
    for (int i = 0; i < HD; i += 32) {
      _tile_loadd(6, q + i, HD * sizeof(bf16));
      _tile_loadd(7, k + i * 16, 64); _tile_dpbf16ps(0, 6, 7);
      _tile_loadd(7, k + (i + HD) * 16, 64); _tile_dpbf16ps(1, 6, 7);
    }
  }
  _tile_stored(0, s, 64);
  _tile_stored(1, s + 256, 64);
}

template <int HD>
static inline void scores(const float* q, const float* k, bool both, float* s) {
  for (int half = 0; half < 1 + both; half++, k += 16 * HD, s += 256) {
    __m512 sum[16];
    for (auto& x : sum) x = _mm512_setzero_ps();
    for (int c = 0; c < HD; c++) {
      const __m512 keys = _mm512_loadu_ps(k + c * 16);
#pragma GCC unroll 16
      for (int r = 0; r < 16; r++)
        sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(q[r * HD + c]), keys, sum[r]);
    }
    for (int r = 0; r < 16; r++) _mm512_store_ps(s + r * 16, sum[r]);
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

// Add shares times the values of a pair to sums o [HD / 16][16][16], which are tiles 2 to 5 in bf16; `step`
// numbers lie between one piece of 16 channels and the next.
template <int HD>
static inline void add_values(const bf16* p, const bf16* v, bool, int64_t step, float*) {
  before_tile_load();
  if constexpr (HD == 16) {
    _tile_loadd(5, p, 64); _tile_loadd(6, v, 64); _tile_dpbf16ps(2, 5, 6);
  } else {
    _tile_loadd(6, p, 64);
    _tile_loadd(7, v, 64); _tile_dpbf16ps(2, 6, 7);
    _tile_loadd(7, v + step, 64); _tile_dpbf16ps(3, 6, 7);
    _tile_loadd(7, v + 2 * step, 64); _tile_dpbf16ps(4, 6, 7);
    _tile_loadd(7, v + 3 * step, 64); _tile_dpbf16ps(5, 6, 7);
  }
}

template <int HD>
static inline void add_values(const float* p, const float* v, bool both, int64_t step, float* o) {
  for (int c = 0; c < HD / 16; c++, o += 256, v += step) {
    __m512 sum[16];
    for (int r = 0; r < 16; r++) sum[r] = _mm512_load_ps(o + r * 16);
    for (int half = 0; half < 1 + both; half++)
      for (int key = 0; key < 16; key++) {
        const __m512 values = _mm512_loadu_ps(v + half * 256 + key * 16);
        const float* shares = p + half * 256 + key;
#pragma GCC unroll 16
        for (int r = 0; r < 16; r++)
          sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(shares[r * 16]), values, sum[r]);
      }
    for (int r = 0; r < 16; r++) _mm512_store_ps(o + r * 16, sum[r]);
  }
}

// 16 queries against `pairs` of keys. A pair has keys k, values v, whether it is `both` halves or one, and
// mask(r, half), which keys count for query r. to(r, c): where 16 channels of row r go, null = nowhere.
// Scores stay below 2^100 unless `shift`: then each row's maximum, found in a first pass, is subtracted.
template <int HD, bool shift, typename Number, typename Pairs, typename To>
static void attend(const Number* q, const Pairs& pairs, int64_t step, To to) {
  alignas(64) float s[2][512], o[HD * 16] = {};
  alignas(64) Number p[512];
  __m512 sum[16], most[16];
  for (auto& x : sum) x = _mm512_setzero_ps();
  constexpr bool tiles = sizeof(Number) == 2;
  if constexpr (tiles && HD == 16) _tile_loadd(3, q, HD * sizeof(bf16));
  const int64_t n = pairs.size();
  if constexpr (shift) {
    for (auto& x : most) x = _mm512_set1_ps(-INFINITY);
    for (int64_t i = 0; i < n; i++) {
      const auto pair = pairs[i];
      scores<HD>(q, pair.k, pair.both, s[0]);
      for (int half = 0; half < 1 + pair.both; half++)
        for (int r = 0; r < 16; r++)
          most[r] = _mm512_mask_max_ps(most[r], pair.mask(r, half), most[r],
                                       _mm512_load_ps(s[0] + half * 256 + r * 16));
    }
    for (auto& x : most) x = _mm512_set1_ps(_mm512_reduce_max_ps(x));
  }
  if constexpr (tiles) {
    _tile_zero(2);
    if constexpr (HD == 64) { _tile_zero(3); _tile_zero(4); _tile_zero(5); }
  }
  scores<HD>(q, pairs[0].k, pairs[0].both, s[0]);
  for (int64_t i = 0; i < n; i++) {
    // The tile unit works on the next pair while the vector units take exponentials.
    if (i + 1 < n) scores<HD>(q, pairs[i + 1].k, pairs[i + 1].both, s[(i + 1) & 1]);
    const float* now = s[i & 1];
    const auto pair = pairs[i];
    auto share = [&](int r, int half) {
      __m512 x = _mm512_load_ps(now + half * 256 + r * 16);
      if constexpr (shift)  // a share below 2^-126 is none, and slow to compute; NaN stays NaN
        x = _mm512_max_ps(_mm512_set1_ps(-126), _mm512_sub_ps(x, most[r]));
      return _mm512_maskz_mov_ps(pair.mask(r, half), exp2_16(x, p));
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
    add_values<HD>(p, pair.v, pair.both, step, o);
  }
  if constexpr (tiles) {
    _tile_stored(2, o, 64);
    if constexpr (HD == 64) {
      _tile_stored(3, o + 256, 64); _tile_stored(4, o + 512, 64); _tile_stored(5, o + 768, 64);
    }
  }
  for (int r = 0; r < 16; r++) {
    const float total = _mm512_reduce_add_ps(sum[r]);
    const __m512 share = _mm512_set1_ps(total == 0 ? 0 : 1 / total);  // nothing seen: zeros
    for (int c = 0; c < HD; c += 16)
      if (Number* y = to(r, c))
        store16(y, _mm512_mul_ps(_mm512_load_ps(o + c * 16 + r * 16), share));
  }
}

// Calls `run(Number*, head width as a constant)`; heads are 16 or 64 wide.
template <typename Run>
static void choose(int64_t is_fp32, int64_t head_width, Run run) {
  auto with = [&](auto width) {
    if (is_fp32) run((float*)nullptr, width);
    else run((bf16*)nullptr, width);
  };
  if (head_width == 16) with(std::integral_constant<int, 16>());
  else with(std::integral_constant<int, 64>());
}
