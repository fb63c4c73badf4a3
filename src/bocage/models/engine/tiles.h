// The tile registers of AMX. A tile is 16 rows of 64 bytes; TDPBF16PS multiplies a 16 x 32 by a 32 x 16
// block, the right one stored as pairs of rows (k, k + 1) side by side.

#pragma once

#include <immintrin.h>

#include <cstdint>

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
    asm volatile("" ::"r"(&shapes) : "memory");  // a compiler may think that only 8 bytes are read
    _tile_loadconfig(&shapes);
  }
  ~TileSession() {
    if (before.palette) _tile_loadconfig(&before);
    else _tile_release();
  }
};

// Keeps the compiler from moving stores past a tile load, which it takes for pure register work.
static inline void before_tile_load() { asm volatile("" ::: "memory"); }
