// Attention of a training step, forward and backward, each row of tokens by itself; rotary encoding.
//
// Products run on AMX tiles like those of products.cpp, blocks of 32 queries by 32 keys. Sums,
// exponentials and the softmax are fp32. Exponentials are powers of 2.
//
// Axes: M heads, HD head width, K channel pairs of a head.

#include "training.h"

// How 32 channels of depth lie in tiles. Heads of 16 channels use the other half of a tile for another part:
// (high, middle) times (high, middle) and (middle, high), and (high, low) times (low, high).
template <int HD, int parts>
struct Depth {
  static constexpr bool narrow = HD == 16;
  static constexpr int n_chunks = narrow ? 1 : HD / 32;
  static constexpr int n_left = narrow && parts == 3 ? 2 : parts;
  static constexpr int n_right = parts;
  static constexpr int64_t left = n_chunks * n_left * PAIR;    // numbers of 32 tokens as a left side
  static constexpr int64_t right = n_chunks * n_right * PAIR;  // and as a right side
};

static inline __m512i join(__m256i low, __m256i high) {
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

// One token (or zeros) as a row of each tile of a chunk of depth.
template <int HD, int parts, bool is_left, typename Number>
static inline void depth_rows(const Number* x, int chunk, __m512 scale, __m512i* rows, int64_t stride) {
  if constexpr (Depth<HD, parts>::narrow) {
    __m512 rest = _mm512_mul_ps(load16(x), scale);
    __m256i part[3];
    for (int p = 0; p < parts; p++) {
      part[p] = round16(rest);
      rest = _mm512_sub_ps(rest, real(_mm512_slli_epi32(_mm512_cvtepu16_epi32(part[p]), 16)));
    }
    if constexpr (parts == 1) {
      rows[0] = join(part[0], _mm256_setzero_si256());
    } else if constexpr (is_left) {
      rows[0] = join(part[0], part[1]), rows[stride] = join(part[0], part[2]);
    } else {
      rows[0] = join(part[0], part[1]), rows[stride] = join(part[1], part[0]);
      rows[2 * stride] = join(part[2], part[0]);
    }
  } else {
    split_words<parts>(_mm512_mul_ps(load16(x + chunk * 32), scale),
                       _mm512_mul_ps(load16(x + chunk * 32 + 16), scale), rows, stride);
  }
}

// Up to 32 tokens as a side of a product along their channels.
template <int HD, int parts, bool is_left, typename Number>
static void pack_depth(const Number* x, int64_t stride, int64_t n_tokens, float scale, bf16* to) {
  using D = Depth<HD, parts>;
  constexpr int n_tiles = is_left ? D::n_left : D::n_right;
  for (int chunk = 0; chunk < D::n_chunks; chunk++, to += n_tiles * PAIR)
    for (int half = 0; half < 2; half++) {
      __m512i rows[n_tiles * 16];
      for (int r = 0; r < 16; r++) {
        const int64_t t = half * 16 + r;
        if (t < n_tokens) {
          depth_rows<HD, parts, is_left>(x + t * stride, chunk, _mm512_set1_ps(scale), rows + r, 16);
        } else {
          for (int p = 0; p < n_tiles; p++) rows[p * 16 + r] = _mm512_setzero_si512();
        }
      }
      store_tiles<n_tiles, !is_left>(rows, to + half * PAIR / 2);
    }
}

// Up to 32 tokens as a side of a product along the tokens: per 32 (or 16) channels parts of 2 x 16.
template <int HD, int parts, bool is_left, typename Number>
static void pack_tokens(const Number* x, int64_t stride, int64_t n_tokens, bf16* to) {
  for (int c = 0; c < HD; c += 16) {
    __m512i words[parts * 16];
    for (int r = 0; r < 16; r++) {
      const __m512 zero = _mm512_setzero_ps();
      const __m512 a = r < n_tokens ? load16(x + r * stride + c) : zero;
      const __m512 b = r + 16 < n_tokens ? load16(x + (r + 16) * stride + c) : zero;
      split_words<parts>(a, b, words + r, 16);
    }
    store_tiles<parts, is_left>(words, to + c / 32 * parts * PAIR + c % 32 / 16 * PAIR / 2);
  }
}

template <int HD, int parts>
constexpr int64_t TOKENS = (HD + 31) / 32 * parts * PAIR;  // numbers of 32 tokens packed so

// Sums of 32 x 32 over the channels, to s [2][2][16][16].
template <int HD, int parts>
static inline void along_depth(const bf16* a, const bf16* b, float* s) {
  using D = Depth<HD, parts>;
  before_tile_load();
  zero_sums();
  if constexpr (D::narrow && parts == 3) {
    multiply<1>(a, b);
    multiply<1>(a, b + PAIR);
    multiply<1>(a + PAIR, b + 2 * PAIR);
  } else {
    for (int c = 0; c < D::n_chunks; c++)
      multiply<parts>(a + c * parts * PAIR, b + c * parts * PAIR);
  }
  _tile_stored(0, s, 64); _tile_stored(1, s + 256, 64);
  _tile_stored(2, s + 512, 64); _tile_stored(3, s + 768, 64);
}

// Two tiles of rows times one of columns, added to tiles 0 and 2, or 1 and 3; and one times two.
#define PRODUCT_TALL(left, right, x, y)                                    \
  _tile_loadd(4, a + left * PAIR, 64); _tile_loadd(6, b + right * PAIR, 64); \
  _tile_loadd(5, a + left * PAIR + PAIR / 2, 64);                            \
  _tile_dpbf16ps(x, 4, 6); _tile_dpbf16ps(y, 5, 6)
#define PRODUCT_WIDE(left, right, x, y)                                    \
  _tile_loadd(4, a + left * PAIR, 64); _tile_loadd(6, b + right * PAIR, 64); \
  _tile_loadd(7, b + right * PAIR + PAIR / 2, 64);                           \
  _tile_dpbf16ps(x, 4, 6); _tile_dpbf16ps(y, 4, 7)
#define ALL_PARTS(PRODUCT, x, y)                                           \
  if constexpr (parts == 3) {                                              \
    PRODUCT(0, 2, x, y); PRODUCT(2, 0, x, y); PRODUCT(1, 1, x, y);         \
    PRODUCT(0, 1, x, y); PRODUCT(1, 0, x, y);                              \
  }                                                                        \
  PRODUCT(0, 0, x, y)

template <int parts>
static inline void multiply_tall(const bf16* a, const bf16* b, bool odd) {
  if (odd) { ALL_PARTS(PRODUCT_TALL, 1, 3); }
  else { ALL_PARTS(PRODUCT_TALL, 0, 2); }
}

template <int parts>
static inline void multiply_wide(const bf16* a, const bf16* b, bool odd) {
  if (odd) { ALL_PARTS(PRODUCT_WIDE, 2, 3); }
  else { ALL_PARTS(PRODUCT_WIDE, 0, 1); }
}

// Sums over blocks of 32 tokens of P [32 x 32 each] times values, y [32, HD].
template <int HD, int parts>
static inline void over_tokens_tall(const bf16* p, const bf16* v, int64_t n_blocks, float* y) {
  if constexpr (HD == 16) {
    alignas(64) float other[512];
    zero_sums();
    for (int64_t j = 0; j < n_blocks; j++)
      multiply_tall<parts>(p + j * parts * PAIR, v + j * TOKENS<HD, parts>, j % 2);
    _tile_stored(0, y, 64); _tile_stored(2, y + 256, 64);
    _tile_stored(1, other, 64); _tile_stored(3, other + 256, 64);
    before_tile_load();
    for (int i = 0; i < 512; i += 16) store16(y + i, _mm512_add_ps(load16(y + i), load16(other + i)));
  } else {
    for (int c = 0; c < HD / 32; c++) {
      zero_sums();
      for (int64_t j = 0; j < n_blocks; j++)
        multiply<parts>(p + j * parts * PAIR, v + j * TOKENS<HD, parts> + c * parts * PAIR);
      store_sums(y + c * 32, HD);
    }
  }
  before_tile_load();
}

// Sums over blocks of 32 queries of x^T times P, yt [HD, 32].
template <int HD, int parts>
static inline void over_tokens_wide(const bf16* x, const bf16* p, int64_t n_blocks, float* yt) {
  if constexpr (HD == 16) {
    alignas(64) float other[512];
    zero_sums();
    for (int64_t i = 0; i < n_blocks; i++)
      multiply_wide<parts>(x + i * TOKENS<HD, parts>, p + i * parts * PAIR, i % 2);
    _tile_stored(0, yt, 128); _tile_stored(1, yt + 16, 128);
    _tile_stored(2, other, 128); _tile_stored(3, other + 16, 128);
    before_tile_load();
    for (int i = 0; i < 512; i += 16) store16(yt + i, _mm512_add_ps(load16(yt + i), load16(other + i)));
  } else {
    for (int c = 0; c < HD / 32; c++) {
      zero_sums();
      for (int64_t i = 0; i < n_blocks; i++)
        multiply<parts>(x + i * TOKENS<HD, parts> + c * parts * PAIR, p + i * parts * PAIR);
      store_sums(yt + c * 32 * 32, 32);
    }
  }
  before_tile_load();
}

// Tokens of all rows: vector t of head m is at data + t * stride + m * HD.
template <typename Number>
struct Heads {
  Number* data;
  int64_t stride;
};

// Tokens that a row asks with and reads.
struct Row {
  int64_t first_query, n_queries, first_read, n_read;
};

struct Memory {  // of one thread
  char* bytes;
  int64_t used = 0;
  template <typename T>
  T* take(int64_t n) {
    T* found = (T*)(bytes + used);
    used += (n * int64_t(sizeof(T)) + 63) / 64 * 64;
    return found;
  }
};

template <int HD, int parts, typename Number>
static void attend(Heads<const Number> q, Heads<const Number> k, Heads<const Number> v,
                   Heads<Number> out, float* lse, int64_t M, int64_t m, const Row& row, Memory memory) {
  const int64_t n_blocks = (row.n_read + 31) / 32;
  using D = Depth<HD, parts>;
  bf16* keys = memory.take<bf16>(n_blocks * D::right);
  bf16* values = memory.take<bf16>(n_blocks * TOKENS<HD, parts>);
  bf16* p = memory.take<bf16>(n_blocks * parts * PAIR);
  float* s = memory.take<float>(n_blocks * 1024);
  bf16* left = memory.take<bf16>(D::left);
  float* y = memory.take<float>(32 * std::max(HD, 16));
  const float scale = 1.4426950408889634f / std::sqrt(float(HD));
  for (int64_t j = 0; j < n_blocks; j++) {
    const int64_t at = row.first_read + j * 32, n = row.n_read - j * 32;
    pack_depth<HD, parts, false>(k.data + at * k.stride + m * HD, k.stride, n, 1.f, keys + j * D::right);
    pack_tokens<HD, parts, false>(v.data + at * v.stride + m * HD, v.stride, n,
                                  values + j * TOKENS<HD, parts>);
  }
  for (int64_t i = 0; i < row.n_queries; i += 32) {
    const int64_t at = row.first_query + i, n_own = std::min<int64_t>(32, row.n_queries - i);
    pack_depth<HD, parts, true>(q.data + at * q.stride + m * HD, q.stride, n_own, scale, left);
    for (int64_t j = 0; j < n_blocks; j++)
      along_depth<HD, parts>(left, keys + j * D::right, s + j * 1024);
    float inverse[32];
    for (int64_t r = 0; r < n_own; r++) {
      const float* own = s + r / 16 * 512 + r % 16 * 16;
      __m512 most = _mm512_set1_ps(-INFINITY);
      for (int64_t j = 0; j < n_blocks; j++) {
        most = _mm512_mask_max_ps(most, first_lanes(row.n_read - j * 32), most, load16(own + j * 1024));
        most = _mm512_mask_max_ps(most, first_lanes(row.n_read - j * 32 - 16), most,
                                  load16(own + j * 1024 + 256));
      }
      const float top = _mm512_reduce_max_ps(most);
      most = _mm512_set1_ps(top);
      __m512 sum = _mm512_setzero_ps();
      for (int64_t j = 0; j < n_blocks; j++) {
        const __mmask16 m0 = first_lanes(row.n_read - j * 32), m1 = first_lanes(row.n_read - j * 32 - 16);
        const __m512 x0 = _mm512_maskz_mov_ps(m0, exp2_16(_mm512_sub_ps(load16(own + j * 1024), most), s));
        const __m512 x1 =
            _mm512_maskz_mov_ps(m1, exp2_16(_mm512_sub_ps(load16(own + j * 1024 + 256), most), s));
        sum = _mm512_add_ps(sum, _mm512_add_ps(x0, x1));
        split_words<parts>(x0, x1, (__m512i*)(p + j * parts * PAIR + r / 16 * (PAIR / 2) + r % 16 * 32),
                           PAIR / 32);
      }
      const float total = _mm512_reduce_add_ps(sum);
      inverse[r] = 1 / total;
      lse[(at + r) * M + m] = top + std::log2(total);
    }
    before_tile_load();
    over_tokens_tall<HD, parts>(p, values, n_blocks, y);
    for (int64_t r = 0; r < n_own; r++)
      for (int c = 0; c < HD; c += 16)
        store16(out.data + (at + r) * out.stride + m * HD + c,
                _mm512_mul_ps(load16(y + r * HD + c), _mm512_set1_ps(inverse[r])));
  }
}

template <int HD, int parts, typename Number>
static void attend_back(Heads<const Number> q, Heads<const Number> k, Heads<const Number> v,
                        Heads<const Number> out, Heads<const Number> g, const float* lse,
                        Heads<float> by_q, Heads<float> by_k, Heads<float> by_v, int64_t M, int64_t m,
                        const Row& row, Memory memory) {
  using D = Depth<HD, parts>;
  constexpr int64_t T = TOKENS<HD, parts>;
  const int64_t n_i = (row.n_queries + 31) / 32, n_j = (row.n_read + 31) / 32;
  const float scale = 1 / std::sqrt(float(HD)), scale2 = scale * 1.4426950408889634f;
  bf16* ask = memory.take<bf16>(n_i * D::left);    // queries, along channels
  bf16* gain = memory.take<bf16>(n_i * D::left);   // gradients, along channels
  bf16* ask_t = memory.take<bf16>(n_i * T);        // queries, along tokens
  bf16* gain_t = memory.take<bf16>(n_i * T);
  bf16* p = memory.take<bf16>(n_i * parts * PAIR);   // shares of a block of keys, along queries
  bf16* ds = memory.take<bf16>(n_i * parts * PAIR);  // gradients of their scores
  float* by_ask = memory.take<float>(n_i * 32 * HD);
  float* delta = memory.take<float>(n_i * 32);
  float* top = memory.take<float>(n_i * 32);
  bf16* key = memory.take<bf16>(D::right);
  bf16* value = memory.take<bf16>(D::right);
  bf16* key_t = memory.take<bf16>(T);
  bf16* ds_rows = memory.take<bf16>(parts * PAIR);
  float* s = memory.take<float>(1024);
  float* dp = memory.take<float>(1024);
  float* yt = memory.take<float>(32 * HD);
  std::memset(by_ask, 0, n_i * 32 * HD * sizeof(float));
  for (int64_t i = 0; i < n_i; i++) {
    const int64_t at = row.first_query + i * 32, n = row.n_queries - i * 32;
    const Number* queries = q.data + at * q.stride + m * HD;
    const Number* gradients = g.data + at * g.stride + m * HD;
    pack_depth<HD, parts, true>(queries, q.stride, n, scale2, ask + i * D::left);
    pack_depth<HD, parts, true>(gradients, g.stride, n, 1.f, gain + i * D::left);
    pack_tokens<HD, parts, true>(queries, q.stride, n, ask_t + i * T);
    pack_tokens<HD, parts, true>(gradients, g.stride, n, gain_t + i * T);
    for (int64_t r = 0; r < 32; r++) {
      delta[i * 32 + r] = 0, top[i * 32 + r] = INFINITY;  // a padded query has no shares
      if (r >= n) continue;
      __m512 sum = _mm512_setzero_ps();
      for (int c = 0; c < HD; c += 16)
        sum = _mm512_fmadd_ps(load16(gradients + r * g.stride + c),
                              load16(out.data + (at + r) * out.stride + m * HD + c), sum);
      delta[i * 32 + r] = _mm512_reduce_add_ps(sum), top[i * 32 + r] = lse[(at + r) * M + m];
    }
  }
  for (int64_t j = 0; j < n_j; j++) {
    const int64_t at = row.first_read + j * 32, n = row.n_read - j * 32;
    const Number* keys = k.data + at * k.stride + m * HD;
    pack_depth<HD, parts, false>(keys, k.stride, n, 1.f, key);
    pack_depth<HD, parts, false>(v.data + at * v.stride + m * HD, v.stride, n, 1.f, value);
    pack_tokens<HD, parts, false>(keys, k.stride, n, key_t);
    const __mmask16 m0 = first_lanes(n), m1 = first_lanes(n - 16);
    for (int64_t i = 0; i < n_i; i++) {
      along_depth<HD, parts>(ask + i * D::left, key, s);
      along_depth<HD, parts>(gain + i * D::left, value, dp);
      bf16 *own_p = p + i * parts * PAIR, *own_ds = ds + i * parts * PAIR;
      for (int64_t r = 0; r < 16; r++) {
        __m512 x[2][2], d[2][2];  // rows r and r + 16, halves
        for (int b = 0; b < 2; b++) {
          const int64_t from = b * 512 + r * 16;
          const __m512 less = _mm512_set1_ps(top[i * 32 + r + b * 16]);
          const __m512 mean = _mm512_set1_ps(delta[i * 32 + r + b * 16]);
          x[b][0] = _mm512_maskz_mov_ps(m0, exp2_16(_mm512_sub_ps(load16(s + from), less), s));
          x[b][1] = _mm512_maskz_mov_ps(m1, exp2_16(_mm512_sub_ps(load16(s + from + 256), less), s));
          d[b][0] = _mm512_mul_ps(x[b][0], _mm512_sub_ps(load16(dp + from), mean));
          d[b][1] = _mm512_mul_ps(x[b][1], _mm512_sub_ps(load16(dp + from + 256), mean));
          split_words<parts>(d[b][0], d[b][1], (__m512i*)(ds_rows + b * (PAIR / 2) + r * 32), PAIR / 32);
        }
        for (int half = 0; half < 2; half++) {
          const int64_t to = half * (PAIR / 2) + r * 32;
          split_words<parts>(x[0][half], x[1][half], (__m512i*)(own_p + to), PAIR / 32);
          split_words<parts>(d[0][half], d[1][half], (__m512i*)(own_ds + to), PAIR / 32);
        }
      }
      before_tile_load();
      float* sums = by_ask + i * 32 * HD;
      if constexpr (HD == 16) {
        _tile_loadd(0, sums, 64); _tile_loadd(2, sums + 256, 64);
        multiply_tall<parts>(ds_rows, key_t, false);
        _tile_stored(0, sums, 64); _tile_stored(2, sums + 256, 64);
      } else {
        for (int c = 0; c < HD / 32; c++) {
          load_sums(sums + c * 32, HD);
          multiply<parts>(ds_rows, key_t + c * parts * PAIR);
          store_sums(sums + c * 32, HD);
        }
      }
    }
    auto turn_back = [&](Heads<float> to, float factor) {  // yt [HD, 32] to rows of tokens
      before_tile_load();
      for (int c = 0; c < HD; c += 16)
        for (int half = 0; half < 32; half += 16) {
          __m512i rows[16];
          for (int r = 0; r < 16; r++) rows[r] = _mm512_loadu_si512(yt + (c + r) * 32 + half);
          transpose16(rows);
          for (int64_t r = 0; r < 16 && half + r < n; r++)
            store16(to.data + (at + half + r) * to.stride + m * HD + c,
                    _mm512_mul_ps(real(rows[r]), _mm512_set1_ps(factor)));
        }
    };
    over_tokens_wide<HD, parts>(gain_t, p, n_i, yt);
    turn_back(by_v, 1);
    over_tokens_wide<HD, parts>(ask_t, ds, n_i, yt);
    turn_back(by_k, scale);
  }
  before_tile_load();
  for (int64_t r = 0; r < row.n_queries; r++)
    for (int c = 0; c < HD; c += 16)
      store16(by_q.data + (row.first_query + r) * by_q.stride + m * HD + c,
              _mm512_mul_ps(load16(by_ask + r * HD + c), _mm512_set1_ps(scale)));
}

template <typename Work>
static void for_each_row(int64_t n_rows, const Row* rows, int64_t M, int64_t bytes, Work work) {
  const TileShapes shapes;
#pragma omp parallel
  {
    TileSession session(shapes);
    char* memory = (char*)std::aligned_alloc(64, (bytes + 63) / 64 * 64);
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t r = 0; r < n_rows; r++)
      for (int64_t m = 0; m < M; m++)
        if (rows[r].n_queries && rows[r].n_read) work(rows[r], m, Memory{memory});
    std::free(memory);
  }
}

template <typename Run>
static void for_head_width(int64_t head_width, int64_t is_fp32, Run run) {
  auto choose = [&](auto width) {
    if (is_fp32) run(width, std::integral_constant<int, 3>(), (float*)nullptr);
    else run(width, std::integral_constant<int, 1>(), (bf16*)nullptr);
  };
  if (head_width == 16) choose(std::integral_constant<int, 16>());
  else if (head_width == 32) choose(std::integral_constant<int, 32>());
  else choose(std::integral_constant<int, 64>());
}

static int64_t longest(const Row* rows, int64_t n_rows) {  // blocks of 32
  int64_t most = 0;
  for (int64_t r = 0; r < n_rows; r++)
    most = std::max(most, std::max(rows[r].n_queries, rows[r].n_read));
  return (most + 31) / 32;
}

// out [n, M HD] of queries, keys and values whose vectors are q_stride (and so on) numbers apart; lse [n, M] is
// the base-2 logarithm of the sum of exponentials. rows [n_rows, 4]: see Row. Nothing is written for a row
// that reads nothing.
extern "C" void bocage_training_attention(const void* q, const void* k, const void* v, void* out, float* lse,
                                         const int64_t* strides, const int64_t* rows, int64_t n_rows,
                                         int64_t M, int64_t head_width, int64_t is_fp32) {
  const Row* all = (const Row*)rows;
  for_head_width(head_width, is_fp32, [&](auto width, auto count, auto* number) {
    using Number = std::remove_pointer_t<decltype(number)>;
    constexpr int HD = decltype(width)::value, parts = decltype(count)::value;
    const int64_t per_block = 2 * (Depth<HD, parts>::right + TOKENS<HD, parts> + parts * PAIR) + 4 * 1024;
    const int64_t bytes = longest(all, n_rows) * per_block + 2 * Depth<HD, parts>::left + 128 * HD + 1024;
    for_each_row(n_rows, all, M, bytes, [&](const Row& row, int64_t m, Memory memory) {
      attend<HD, parts, Number>({(const Number*)q, strides[0]}, {(const Number*)k, strides[1]},
                                {(const Number*)v, strides[2]}, {(Number*)out, M * HD}, lse, M, m, row,
                                memory);
    });
  });
}

// Gradients in fp32 from g [n, M HD], that of out; strides of q, k, v and of their gradients.
extern "C" void bocage_training_attention_gradient(const void* q, const void* k, const void* v,
                                                  const void* out, const void* g, const float* lse,
                                                  float* by_q, float* by_k, float* by_v,
                                                  const int64_t* strides, const int64_t* rows,
                                                  int64_t n_rows, int64_t M, int64_t head_width,
                                                  int64_t is_fp32) {
  const Row* all = (const Row*)rows;
  for_head_width(head_width, is_fp32, [&](auto width, auto count, auto* number) {
    using Number = std::remove_pointer_t<decltype(number)>;
    constexpr int HD = decltype(width)::value, parts = decltype(count)::value;
    using D = Depth<HD, parts>;
    const int64_t T = TOKENS<HD, parts>;
    const int64_t per_block = 2 * (2 * D::left + 2 * T + 2 * parts * PAIR) + 4 * (32 * HD + 64);
    const int64_t bytes = longest(all, n_rows) * per_block +
                          2 * (2 * D::right + T + parts * PAIR) + 4 * (2048 + 32 * HD) + 2048;
    for_each_row(n_rows, all, M, bytes, [&](const Row& row, int64_t m, Memory memory) {
      attend_back<HD, parts, Number>(
          {(const Number*)q, strides[0]}, {(const Number*)k, strides[1]}, {(const Number*)v, strides[2]},
          {(const Number*)out, M * HD}, {(const Number*)g, M * HD}, lse, {by_q, strides[3]},
          {by_k, strides[4]}, {by_v, strides[5]}, M, m, row, memory);
    });
  });
}
