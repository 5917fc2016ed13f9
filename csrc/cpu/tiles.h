// How a matrix is cut into tiles of work: by its shape alone, so that no result depends on the number of threads.
#pragma once

#include "../layout.h"

namespace esper::cpu {

constexpr int64_t kTile = 16384;  // elements of work per tile: 64 KB of float, inside L2 with its seed and output
constexpr int64_t kGrain = 2;     // tiles below which a second thread is not worth waking

struct Tile {
  int64_t row, rows;
  Span cols;
};

// Cuts rows x width into tiles; the cut depends on the shape alone.
struct Tiles {
  int64_t rows, width, tile_rows, tile_cols, across, count;

  explicit Tiles(const Matrix& m) : rows(m.rows), width(m.width) {
    tile_cols = std::max<int64_t>(1, std::min(width, kTile));
    tile_rows = std::max<int64_t>(1, kTile / tile_cols);
    across = (width + tile_cols - 1) / tile_cols;
    count = across * ((rows + tile_rows - 1) / tile_rows);
  }

  Tile operator[](int64_t i) const {
    const int64_t row = i / across * tile_rows, col = i % across * tile_cols;
    return {row, std::min(tile_rows, rows - row), {col, std::min(col + tile_cols, width)}};
  }
};

}  // namespace esper::cpu
