// What the encoder does between its large matrix products, for CPUs with AMX; those stay with oneDNN.
//
//   attention      rotary encoding and attention of every head in one pass, ragged lengths (bf16)
//   rotate_qk      rotary encoding alone, in place (fp32; torch's own attention follows)
//   patch_pixels   resize, pixel network and ReLU of one patch at a time: nothing is upsampled in
//                  memory
//   layer_norm     statistics in fp32; the gain lives in the next linear map
//   gelu           exact to 3e-5 in bf16, below its rounding; to 1e-6 in fp32
//   norm_pool      last norm and weighted mean over the tokens of a cell
//
// A tile is 16 rows of 64 bytes; TDPBF16PS multiplies a 16 x 32 by a 32 x 16 block, the right one
// stored as pairs of rows (k, k + 1) side by side.
//
// Axes: B batch, N tokens, M heads, HD head width, D = M HD, T times.

#include <immintrin.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

using bf16 = uint16_t;

// ---------------------------------------------------------------------------------------------
// Small pieces

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t n_bytes[16] = {};
  uint8_t rows[16] = {};
  TileShapes() {
    for (int i = 0; i < 8; i++) n_bytes[i] = 64, rows[i] = 16;
  }
};

// oneDNN keeps its own tile shapes between calls: put them back on the way out.
struct TileSession {
  TileShapes before;
  explicit TileSession(const TileShapes& shapes) {
    _tile_storeconfig(&before);
    _tile_loadconfig(&shapes);
  }
  ~TileSession() {
    if (before.palette) _tile_loadconfig(&before);
    else _tile_release();
  }
};

static inline __m512 load16(const bf16* x) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16));
}

static inline __m512 load16(const float* x) { return _mm512_loadu_ps(x); }

static inline __m256i round16(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

static inline void store16(bf16* y, __m512 x) { _mm256_storeu_si256((__m256i*)y, round16(x)); }

static inline void store16(float* y, __m512 x) { _mm512_storeu_ps(y, x); }

static inline __mmask16 first_lanes(int64_t n) {
  return n >= 16 ? 0xffff : n <= 0 ? 0 : (1u << n) - 1;
}

// Keeps the compiler from moving stores past a tile load, which it takes for pure register work.
static inline void before_tile_load() { asm volatile("" ::: "memory"); }

// 2^x to 3e-6: fraction by a polynomial of degree 4, whole part into the exponent. Enough for the
// shares of attention, which are rounded to bf16, and for the small tail that it gives to GELU.
static inline __m512 exp2_16(__m512 x) {
  const __m512 f = _mm512_reduce_ps(x, 0x01);  // x - floor(x)
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.0135206f), f, _mm512_set1_ps(0.05203743f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.24142749f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.69300662f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.00000252f));
  return _mm512_scalef_ps(p, x);
}

// ---------------------------------------------------------------------------------------------
// Attention

// A row of an int8 product in bf16: value * scale[row] + bias[column]. Null = already real.
struct Rescale {
  const float *scale, *bias;
};

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
                           int64_t place, float scale, float row_scale = 1,
                           const float* bias = nullptr) {
  const __m256 scales = _mm256_set1_ps(scale), row_scales = _mm256_set1_ps(row_scale);
  __m256 squares = _mm256_setzero_ps();
  for (int k = 0; k < K; k += 8) {
    __m256 a = load8(x + k), b = load8(x + k + K);
    if (bias) {
      a = _mm256_fmadd_ps(a, row_scales, _mm256_loadu_ps(bias + k));
      b = _mm256_fmadd_ps(b, row_scales, _mm256_loadu_ps(bias + k + K));
    }
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

// One head of one sample, laid out for tiles.
template <int HD>
struct Head {
  static constexpr int64_t size(int64_t n_padded) { return 3 * n_padded * HD; }
  bf16 *q, *k, *v;  // q rows; k per 16 tokens [HD/2][16][2]; v per 32 tokens [HD/16][16][16][2]
  Head(bf16* memory, int64_t n_padded)
      : q(memory), k(memory + n_padded * HD), v(memory + 2 * n_padded * HD) {}

  // Returns the product of the largest lengths of a query and a key: no score is larger.
  float pack(const bf16* qkv, int64_t n_tokens, const Rotation* r, const Rescale& real, int64_t b,
             int64_t m, int64_t n_heads, float scale) {
    const float *bias = real.bias ? real.bias + m * HD : nullptr, *row_scale = real.scale;
    const int64_t D = n_heads * HD;
    float longest_q = 0, longest_k = 0;
    for (int64_t first = 0; first < n_tokens; first += 16) {
      alignas(64) bf16 key[16 * HD];
      const int n_rows = std::min<int64_t>(16, n_tokens - first);
      for (int i = 0; i < n_rows; i++) {
        const int64_t n = first + i;
        const bf16* row = qkv + n * 3 * D + m * HD;
        const int64_t time = r ? r->time_offset(b, n, m, n_heads, HD / 2) : 0;
        const int64_t place = r ? r->place_offset(b, n, m, n_heads, HD / 2) : 0;
        longest_q = std::max(longest_q, rotate(row, q + n * HD, HD / 2, r, time, place, scale,
                                                row_scale ? row_scale[n] : 1, bias));
        longest_k = std::max(longest_k, rotate(row + D, key + i * HD, HD / 2, r, time, place, 1,
                                                row_scale ? row_scale[n] : 1,
                                                bias ? bias + D : nullptr));
      }
      if (n_rows < 16) {
        std::memset(q + (first + n_rows) * HD, 0, (16 - n_rows) * HD * sizeof(bf16));
        std::memset(key + n_rows * HD, 0, (16 - n_rows) * HD * sizeof(bf16));
      }
      transpose_pairs(key, k + first * HD);
      for (int i = 0; i < 16; i += 2) {
        const int64_t n = first + i;
        const bf16* row = qkv + n * 3 * D + 2 * D + m * HD;
        bf16* to = v + n / 32 * 32 * HD + n % 32 / 2 * 32;
        for (int c = 0; c < HD; c += 16) {
          __m512i even = _mm512_setzero_si512(), odd = even;
          const float* add = bias ? bias + 2 * D + c : nullptr;
          if (i < n_rows) even = widen(row + c, row_scale + n, add);
          if (i + 1 < n_rows) odd = widen(row + 3 * D + c, row_scale + n + 1, add);
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
    return std::sqrt(longest_q * longest_k);
  }

  static __m512i widen(const bf16* x, const float* row_scale, const float* bias) {
    if (!bias) return _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x));
    const __m512 real = _mm512_fmadd_ps(load16(x), _mm512_set1_ps(*row_scale), load16(bias));
    return _mm512_cvtepu16_epi32(round16(real));
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
static void attend(const bf16* q, const Head<HD>& head, int64_t n_tokens, int64_t n_rows, bf16* out,
                   int64_t stride) {
  alignas(64) float s[2][512], o[HD * 16];
  alignas(64) bf16 p[512];
  __m512 sum[16], most[16];
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
      if constexpr (shift) x0 = _mm512_sub_ps(x0, most[r]), x1 = _mm512_sub_ps(x1, most[r]);
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
      store16(out + r * stride + i, _mm512_mul_ps(_mm512_load_ps(o + i * 16 + r * 16), share));
  }
}

template <int HD>
static void attention_of(const bf16* qkv, bf16* out, int64_t B, int64_t N, int64_t M,
                         const int64_t* lengths, const Rotation* rotation, const Rescale& real) {
  const float scale = 1.4426950408889634f / std::sqrt(float(HD));  // exponentials are powers of 2
  const int64_t n_padded = (N + 31) / 32 * 32, D = M * HD, n_q = (N + 15) / 16;
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
        const Rescale rows{real.scale ? real.scale + b * N : nullptr, real.bias};
        bound[b * M + m] = head.pack(qkv + b * N * 3 * D, n, rotation, rows, b, m, M, scale);
      }
#pragma omp for collapse(3) schedule(static)
    for (int64_t b = 0; b < B; b++)
      for (int64_t m = 0; m < M; m++)
        for (int64_t i = 0; i < n_q; i++) {
          const int64_t n = lengths ? lengths[b] : N, first = i * 16;
          const int64_t n_rows = std::min<int64_t>(16, n - first);
          if (n_rows <= 0) continue;
          const Head<HD> head(memory + (b * M + m) * size, n_padded);
          bf16* to = out + (b * N + first) * D + m * HD;
          if (bound[b * M + m] < 100) attend<HD, false>(head.q + first * HD, head, n, n_rows, to, D);
          else attend<HD, true>(head.q + first * HD, head, n, n_rows, to, D);
        }
  }
  std::free(bound);
  std::free(memory);
}

// Attention out [B, N, D] of qkv [B, N, 3 D]; lengths [B] or null. Rotation pointers may be null;
// so may row_scale [B N] and bias [3 D] of a qkv that comes from int8.
extern "C" int bocage_attention(const bf16* qkv, bf16* out, int64_t B, int64_t N, int64_t M,
                                int64_t head_width, const int64_t* lengths,
                                const float* row_scale, const float* bias, const float* time_cos,
                                const float* time_sin, const float* place_cos,
                                const float* place_sin, int64_t time_batch_stride,
                                const int32_t* time, const int32_t* place,
                                int64_t token_batch_stride) {
  const Rotation rotation{time_cos, time_sin, place_cos, place_sin, time_batch_stride,
                          time,     place,    token_batch_stride};
  const Rotation* r = time_cos ? &rotation : nullptr;
  const Rescale real{row_scale, bias};
  if (head_width == 16) attention_of<16>(qkv, out, B, N, M, lengths, r, real);
  else if (head_width == 64) attention_of<64>(qkv, out, B, N, M, lengths, r, real);
  else return 1;
  return 0;
}

// Rotary encoding of q and k in place, for fp32 qkv [B, N, 3 D].
extern "C" void bocage_rotate_qk(float* qkv, int64_t B, int64_t N, int64_t M, int64_t head_width,
                                 const float* time_cos, const float* time_sin,
                                 const float* place_cos, const float* place_sin,
                                 int64_t time_batch_stride, const int32_t* time,
                                 const int32_t* place, int64_t token_batch_stride) {
  const Rotation r{time_cos, time_sin, place_cos, place_sin, time_batch_stride,
                   time,     place,    token_batch_stride};
  const int64_t K = head_width / 2, D = M * head_width;
#pragma omp parallel for collapse(2) schedule(static)
  for (int64_t b = 0; b < B; b++)
    for (int64_t n = 0; n < N; n++)
      for (int64_t m = 0; m < M; m++) {
        const int64_t t = r.time_offset(b, n, m, M, K), p = r.place_offset(b, n, m, M, K);
        float* q = qkv + (b * N + n) * 3 * D + m * head_width;
        rotate(q, q, K, &r, t, p, 1);
        rotate(q + D, q + D, K, &r, t, p, 1);
      }
}

// ---------------------------------------------------------------------------------------------
// Patch embedding

struct Taps {  // of a resize along one axis: 8 outputs per patch, each a weighted run of pixels
  int64_t n;              // taps per output; 0 = no resize
  const int32_t* first;  // [8 patches]
  const float* weight;   // [8 patches, n]
};

// The pixel network (bands -> hidden, ReLU) of one patch of 64 pixels x 16 bands.
static void pixel_network(const bf16* pixels, bf16* row, int64_t, int64_t n_hidden,
                          const void* weight, const float* bias) {  // tiles 0 sums, 1 pixels, 2 weight
  alignas(64) float sums[256];
  before_tile_load();
  for (int64_t o = 0; o < n_hidden; o += 16) {
    const __m512 b = _mm512_loadu_ps(bias + o);
    const __mmask16 lanes = first_lanes(n_hidden - o);
    _tile_loadd(2, (const bf16*)weight + o * 16, 64);  // [n_hidden/16][band pairs][16][2]
    for (int k = 0; k < 64; k += 16) {
      _tile_zero(0);
      _tile_loadd(1, pixels + k * 16, 32);
      _tile_dpbf16ps(0, 1, 2);
      _tile_stored(0, sums, 64);
      for (int r = 0; r < 16; r++) {
        const __m512 v = _mm512_add_ps(_mm512_load_ps(sums + r * 16), b);
        _mm256_mask_storeu_epi16(row + (k + r) * n_hidden + o, lanes,
                                 round16(_mm512_max_ps(v, _mm512_setzero_ps())));
      }
    }
  }
}

static void pixel_network(const float* pixels, float* row, int64_t n_bands, int64_t n_hidden,
                          const void* weight, const float* bias) {
  const int64_t padded = (n_hidden + 15) / 16 * 16;  // weight [bands][padded]
  for (int64_t o = 0; o < n_hidden; o += 16) {
    const __mmask16 lanes = first_lanes(n_hidden - o);
    for (int k = 0; k < 64; k += 8) {
      __m512 sum[8];
      for (auto& x : sum) x = _mm512_loadu_ps(bias + o);
      for (int64_t c = 0; c < n_bands; c++) {
        const __m512 w = _mm512_loadu_ps((const float*)weight + c * padded + o);
        for (int r = 0; r < 8; r++)
          sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(pixels[(k + r) * 16 + c]), w, sum[r]);
      }
      for (int r = 0; r < 8; r++)
        _mm512_mask_storeu_ps(row + (k + r) * n_hidden + o, lanes,
                              _mm512_max_ps(sum[r], _mm512_setzero_ps()));
    }
  }
}

static inline void store_lanes(bf16* y, __mmask16 lanes, __m512 x) {
  _mm256_mask_storeu_epi16(y, lanes, round16(x));
}
static inline void store_lanes(float* y, __mmask16 lanes, __m512 x) {
  _mm512_mask_storeu_ps(y, lanes, x);
}

template <typename Number>
static void patches(const float* x, Number* z, int64_t first, int64_t count, int64_t H, int64_t W,
                    int64_t T, int64_t C, int64_t h, int64_t w, const Taps& rows, const Taps& cols,
                    const int32_t* bands, int64_t n_bands, int64_t n_hidden, const void* weight,
                    const float* bias) {
  const __mmask16 all = first_lanes(C), used = first_lanes(n_bands);
  const __m512i order = _mm512_loadu_si512(bands);
  TileShapes shapes;
  shapes.n_bytes[1] = 32;
  shapes.rows[2] = 8;  // 16 pixels x 16 bands, 16 bands x 16 hidden
#pragma omp parallel
  {
    TileSession session(shapes);
    alignas(64) Number pixels[64 * 16];
    __m512 patch[16][16], column[16];
#pragma omp for schedule(static)
    for (int64_t n = first; n < first + count; n++) {
      const int64_t t = n % T, j = n / T % w, i = n / T / w % h, b = n / T / w / h;
      const float* image = x + (b * H * W * T + t) * C;
      Number* row = z + (n - first) * 64 * (n_hidden ? n_hidden : n_bands);
      auto pixel = [&](int64_t y, int64_t c) {
        return _mm512_maskz_permutexvar_ps(
            used, order, _mm512_maskz_loadu_ps(all, image + (y * W + c) * T * C));
      };
      auto put = [&](int k, __m512 v) {
        if (n_hidden) store16(pixels + k * 16, v);
        else store_lanes(row + k * n_bands, used, v);
      };
      if (rows.n == 0) {
        for (int r = 0; r < 8; r++)
          for (int c = 0; c < 8; c++) put(r * 8 + c, pixel(i * 8 + r, j * 8 + c));
      } else {
        const int32_t *y = rows.first + i * 8, *c0 = cols.first + j * 8;
        const int n_y = y[7] - y[0] + rows.n, n_c = c0[7] - c0[0] + cols.n;
        for (int a = 0; a < n_y; a++)
          for (int c = 0; c < n_c; c++) patch[a][c] = pixel(y[0] + a, c0[0] + c);
        auto mix = [](const float* weight, int64_t n_taps, auto tap) {
          __m512 v = _mm512_mul_ps(_mm512_set1_ps(weight[0]), tap(0));
          for (int a = 1; a < n_taps; a++) v = _mm512_fmadd_ps(_mm512_set1_ps(weight[a]), tap(a), v);
          return v;
        };
        for (int r = 0; r < 8; r++) {
          for (int c = 0; c < n_c; c++)
            column[c] = mix(rows.weight + (i * 8 + r) * rows.n, rows.n,
                            [&](int a) { return patch[y[r] - y[0] + a][c]; });
          for (int c = 0; c < 8; c++)
            put(r * 8 + c, mix(cols.weight + (j * 8 + c) * cols.n, cols.n,
                               [&](int a) { return column[c0[c] - c0[0] + a]; }));
        }
      }
      if (n_hidden) pixel_network(pixels, row, n_bands, n_hidden, weight, bias);
    }
  }
}

// Tokens [first, first + count) of [B, h, w, T] of x [B, H, W, T, C] to rows of z: the 64 resized pixels
// of `n_bands` bands, or after the pixel network (n_hidden > 0) its 64 x n_hidden activations.
extern "C" void bocage_patch_pixels(const float* x, void* z, int64_t is_fp32, int64_t first,
                                    int64_t count, int64_t H, int64_t W, int64_t T, int64_t C,
                                    int64_t h, int64_t w, int64_t n_row_taps, int64_t n_col_taps,
                                    const int32_t* row_first, const float* row_weight,
                                    const int32_t* col_first, const float* col_weight,
                                    const int32_t* bands, int64_t n_bands, int64_t n_hidden,
                                    const void* weight, const float* bias) {
  const Taps rows{n_row_taps, row_first, row_weight}, cols{n_col_taps, col_first, col_weight};
  auto run = [&](auto* to) {
    patches(x, to, first, count, H, W, T, C, h, w, rows, cols, bands, n_bands, n_hidden, weight, bias);
  };
  if (is_fp32) run((float*)z);
  else run((bf16*)z);
}

// ---------------------------------------------------------------------------------------------
// Norms and GELU

struct Moments {
  __m512 mean;
  float inverse_deviation;
  template <typename Number>
  Moments(const Number* x, int64_t D, float epsilon) {
    __m512 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (int64_t i = 0; i < D; i += 16) sum = _mm512_add_ps(sum, load16(x + i));
    mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / D);
    for (int64_t i = 0; i < D; i += 16) {
      const __m512 d = _mm512_sub_ps(load16(x + i), mean);
      squares = _mm512_fmadd_ps(d, d, squares);
    }
    inverse_deviation = 1 / std::sqrt(_mm512_reduce_add_ps(squares) / D + epsilon);
  }
};

template <typename Number>
static void layer_norm(const Number* x, Number* y, int64_t n_rows, int64_t D, float epsilon) {
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < n_rows; r++) {
    const Moments moments(x + r * D, D, epsilon);
    const __m512 scale = _mm512_set1_ps(moments.inverse_deviation);
    for (int64_t i = r * D; i < r * D + D; i += 16)
      store16(y + i, _mm512_mul_ps(_mm512_sub_ps(load16(x + i), moments.mean), scale));
  }
}

extern "C" void bocage_layer_norm(const void* x, void* y, int64_t is_fp32, int64_t n_rows, int64_t D,
                                  float epsilon) {
  if (is_fp32) layer_norm((const float*)x, (float*)y, n_rows, D, epsilon);
  else layer_norm((const bf16*)x, (bf16*)y, n_rows, D, epsilon);
}

// x (1/2 + x P(x^2)) with x clamped inside P: a minimax fit of the error of the whole on |x| < 4.4.
static inline __m512 gelu16(__m512 x, const bf16*) {
  const float c[9] = {0.39876184f,     -0.06607684f,   0.0096433032f,
                      -0.0010550808f,  8.4308398e-05f, -4.7264016e-06f,
                      1.7417220e-07f,  -3.7567016e-09f, 3.5727449e-11f};
  const __m512 limit = _mm512_set1_ps(4.4f);
  const __m512 t = _mm512_min_ps(_mm512_max_ps(x, _mm512_sub_ps(_mm512_setzero_ps(), limit)), limit);
  const __m512 u = _mm512_mul_ps(t, t);
  __m512 p = _mm512_set1_ps(c[8]);
  for (int i = 7; i >= 0; i--) p = _mm512_fmadd_ps(p, u, _mm512_set1_ps(c[i]));
  return _mm512_mul_ps(x, _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.5f)));
}

// With erf by Abramowitz and Stegun 7.1.26 (error 1.5e-7): 1 - (a1 t + ... + a5 t^5) exp(-z^2).
static inline __m512 gelu16(__m512 x, const float*) {
  const __m512 z = _mm512_abs_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.70710678f)));
  const __m512 one = _mm512_set1_ps(1);
  const __m512 t = _mm512_div_ps(one, _mm512_fmadd_ps(_mm512_set1_ps(0.3275911f), z, one));
  __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(1.061405429f), t, _mm512_set1_ps(-1.453152027f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
  p = _mm512_mul_ps(_mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f)), t);
  const __m512 power = _mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-1.44269504f));
  const __m512 tail = _mm512_mul_ps(_mm512_set1_ps(0.5f), _mm512_mul_ps(p, exp2_16(power)));
  const __mmask16 negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  return _mm512_mul_ps(x, _mm512_mask_mov_ps(_mm512_sub_ps(one, tail), negative, tail));
}

template <typename Number>
static void gelu(Number* x, int64_t n) {
#pragma omp parallel for schedule(static)
  for (int64_t start = 0; start < n; start += 4096)
    for (int64_t i = start; i < std::min(start + 4096, n); i += 16)
      store16(x + i, gelu16(load16(x + i), x));
}

extern "C" void bocage_gelu(void* x, int64_t is_fp32, int64_t n) {  // in place; n a multiple of 16
  if (is_fp32) gelu((float*)x, n);
  else gelu((bf16*)x, n);
}

template <typename Number>
static void norm_pool(const Number* x, float* out, int64_t n_cells, int64_t L, int64_t D,
                      const float* weight, const float* gain, const float* bias, float epsilon) {
#pragma omp parallel for schedule(static)
  for (int64_t c = 0; c < n_cells; c++) {
    float* y = out + c * D;
    std::memset(y, 0, D * sizeof(float));
    for (int64_t l = 0; l < L; l++) {
      const Number* token = x + (c * L + l) * D;
      const Moments moments(token, D, epsilon);
      const __m512 scale = _mm512_set1_ps(moments.inverse_deviation * weight[l]);
      for (int64_t i = 0; i < D; i += 16) {
        const __m512 v = _mm512_sub_ps(load16(token + i), moments.mean);
        store16(y + i, _mm512_fmadd_ps(v, scale, load16(y + i)));
      }
    }
    for (int64_t i = 0; i < D; i += 16)
      store16(y + i, _mm512_fmadd_ps(load16(y + i), load16(gain + i), load16(bias + i)));
  }
}

// out [cells, D] = gain * sum over the L tokens of a cell of weight[l] * normalized x[cell, l] + bias
extern "C" void bocage_norm_pool(const void* x, float* out, int64_t is_fp32, int64_t n_cells,
                                 int64_t L, int64_t D, const float* weight, const float* gain,
                                 const float* bias, float epsilon) {
  if (is_fp32) norm_pool((const float*)x, out, n_cells, L, D, weight, gain, bias, epsilon);
  else norm_pool((const bf16*)x, out, n_cells, L, D, weight, gain, bias, epsilon);
}

// ---------------------------------------------------------------------------------------------
// int8

// Rows of bf16 to int8 with one scale per row, so that no sample depends on its batch mates.
// What a row is before it is quantized:
//   plain      x
//   gelu       gelu(x * in_scale[row] + bias)
//   add        x, after x += y * in_scale[row] + bias, which is stored
//   norm       then normalized, without gain
extern "C" void bocage_quantize(bf16* x, const bf16* y, const float* in_scale, const float* bias,
                                int64_t is_gelu, int64_t is_norm, float epsilon, int8_t* q,
                                float* q_scale, int64_t n_rows, int64_t D) {
#pragma omp parallel
  {
    float* row = (float*)std::aligned_alloc(64, D * sizeof(float));
#pragma omp for schedule(static)
    for (int64_t r = 0; r < n_rows; r++) {
      bf16* xr = x + r * D;
      const __m512 scale = _mm512_set1_ps(in_scale ? in_scale[r] : 1);
      for (int64_t i = 0; i < D; i += 16) {
        __m512 v = load16(xr + i);
        if (is_gelu) v = gelu16(_mm512_fmadd_ps(v, scale, load16(bias + i)), xr);
        if (y) {
          v = _mm512_add_ps(v, _mm512_fmadd_ps(load16(y + r * D + i), scale, load16(bias + i)));
          store16(xr + i, v);
        }
        store16(row + i, v);
      }
      if (!q) continue;
      __m512 mean = _mm512_setzero_ps(), most = _mm512_setzero_ps();
      float factor = 1;
      if (is_norm) {
        const Moments moments(row, D, epsilon);
        mean = moments.mean, factor = moments.inverse_deviation;
      }
      for (int64_t i = 0; i < D; i += 16)
        most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_sub_ps(load16(row + i), mean)));
      const float largest = std::max(_mm512_reduce_max_ps(most), 1e-20f);
      q_scale[r] = largest * factor / 127;
      const __m512 to_code = _mm512_set1_ps(127 / largest);
      for (int64_t i = 0; i < D; i += 16) {
        const __m512 v = _mm512_mul_ps(_mm512_sub_ps(load16(row + i), mean), to_code);
        _mm_storeu_si128((__m128i*)(q + r * D + i), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v)));
      }
    }
    std::free(row);
  }
}

// Linux hands out the tile registers on request; 0 = granted.
extern "C" int bocage_request_tiles() { return int(syscall(SYS_arch_prctl, 0x1023, 18)); }
