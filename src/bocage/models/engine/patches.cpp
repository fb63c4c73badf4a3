// Resize, pixel network and ReLU of one patch at a time: nothing is upsampled in memory.
//
// Axes: B batch, H W pixels, h w patches, T times, C bands.

#include "tiles.h"
#include "vectors.h"

struct Strides {  // of imagery, in numbers
  int64_t sample, row, col, time, band;
};

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
static void patches(const float* x, Number* z, int64_t first, int64_t count, const Strides& at,
                    int64_t T, int64_t C, int64_t h, int64_t w, const Taps& rows, const Taps& cols,
                    const int32_t* bands, const float* scale, const float* shift, int64_t n_bands,
                    int64_t n_hidden, const void* weight, const float* bias) {
  const __mmask16 all = first_lanes(C), used = first_lanes(n_bands);
  const __m512i order = _mm512_loadu_si512(bands);
  const __m512i planes = _mm512_mullo_epi32(order, _mm512_set1_epi32((int32_t)at.band));
  const __m512 scales = _mm512_maskz_loadu_ps(used, scale);
  const __m512 shifts = _mm512_maskz_loadu_ps(used, shift);
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
      const float* image = x + b * at.sample + t * at.time;
      Number* row = z + (n - first) * 64 * (n_hidden ? n_hidden : n_bands);
      auto pixel = [&](int64_t y, int64_t c) {
        const float* p = image + y * at.row + c * at.col;
        const __m512 v =
            at.band == 1
                ? _mm512_permutexvar_ps(order, _mm512_maskz_loadu_ps(all, p))
                : _mm512_mask_i32gather_ps(_mm512_setzero_ps(), used, planes, p, 4);
        return _mm512_maskz_fmadd_ps(used, v, scales, shifts);
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

// Tokens [first, first + count) of [B, h, w, T] of x [B, H, W, T, C] with any strides, times a scale
// and plus a shift for each band of the set, to rows of z: the 64 resized pixels of `n_bands` bands,
// or after the pixel network (n_hidden > 0) its 64 x n_hidden activations.
extern "C" void bocage_patch_pixels(const float* x, void* z, int64_t is_fp32, int64_t first,
                                    int64_t count, int64_t by_sample, int64_t by_row,
                                    int64_t by_col, int64_t by_time, int64_t by_band, int64_t T,
                                    int64_t C, int64_t h, int64_t w, int64_t n_row_taps,
                                    int64_t n_col_taps,
                                    const int32_t* row_first, const float* row_weight,
                                    const int32_t* col_first, const float* col_weight,
                                    const int32_t* bands, const float* scale, const float* shift,
                                    int64_t n_bands, int64_t n_hidden,
                                    const void* weight, const float* bias) {
  const Taps rows{n_row_taps, row_first, row_weight}, cols{n_col_taps, col_first, col_weight};
  auto run = [&](auto* to) {
    patches(x, to, first, count, {by_sample, by_row, by_col, by_time, by_band}, T, C, h, w, rows,
            cols, bands, scale, shift, n_bands, n_hidden, weight, bias);
  };
  if (is_fp32) run((float*)z);
  else run((bf16*)z);
}
