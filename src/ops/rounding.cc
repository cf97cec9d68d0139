#include "ops/rounding.h"

#include <algorithm>
#include <bit>

#include "base/arithmetic.h"
#include "ops/cpu/isa.h"
#include "ops/cpu/rounding_kernels.h"
#include "ops/grain.h"

namespace fathom {
namespace {

constexpr int64_t kTile = 128;

const cpu::RoundingKernels& kernels() {
  return cpu::choose(cpu::baseline::rounding_kernels, cpu::avx2::rounding_kernels, cpu::avx512::rounding_kernels);
}

float tile_scale(float largest, bool power_of_two, const cpu::FloatGrid& grid) {
  const float scale = std::max(largest / grid.largest, 0x1p-126F);
  return power_of_two ? std::bit_cast<float>((std::bit_cast<uint32_t>(scale) + 0x7FFFFF) & 0x7F800000) : scale;
}

void round_tiles_of_rows(Context& ctx, Tensor out, Tensor x, bool power_of_two, const cpu::FloatGrid& grid,
                         float amax_floor = 0, int64_t parts = 1) {
  const auto& kernel = kernels();
  const int64_t width = x.cols() / parts;
  FATHOM_CHECK(width * parts == x.cols());
  ctx.pool.parallel_for(0, x.rows(), row_grain(4 * x.cols()), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* in = x.f32_row(t);
      float* to = out.f32_row(t);
      for (int64_t end_of_part = width; end_of_part <= x.cols(); end_of_part += width) {
        for (int64_t c = end_of_part - width; c < end_of_part; c += kTile) {
          const int64_t n = std::min(kTile, end_of_part - c);
          const float largest = std::max(kernel.largest(in + c, n), amax_floor);
          kernel.scaled(to + c, in + c, n, tile_scale(largest, power_of_two, grid), grid);
        }
      }
    }
  });
}

Tensor round_to_bf16(Context& ctx, Tensor x) {
  Tensor out = new_f32(ctx, {x.rows(), x.cols()});
  const auto& kernel = kernels();
  ctx.pool.parallel_for(0, x.rows(), row_grain(x.cols()), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) kernel.bf16(out.f32_row(t), x.f32_row(t), x.cols());
  });
  return out;
}

// One scale for all of x.
Tensor round_whole(Context& ctx, Tensor x) {
  const Tensor out = new_f32(ctx, {x.rows(), x.cols()});
  const ArenaScope scope(ctx.arena);
  const auto& kernel = kernels();
  const Tensor largest = new_f32(ctx, {x.rows()});
  ctx.pool.parallel_for(0, x.rows(), row_grain(x.cols()), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) largest.f32()[t] = kernel.largest(x.f32_row(t), x.cols());
  });
  const float scale = tile_scale(kernel.largest(largest.f32(), x.rows()), /*power_of_two=*/false, cpu::kE4m3);
  ctx.pool.parallel_for(0, x.rows(), row_grain(2 * x.cols()), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) kernel.scaled(out.f32_row(t), x.f32_row(t), x.cols(), scale, cpu::kE4m3);
  });
  return out;
}

// For a precision that asks for no tiles.
Tensor round_without_tiles(Context& ctx, Tensor x, Precision precision) {
  if (precision == Precision::f32) return x;
  return precision == Precision::bf16 ? round_to_bf16(ctx, x) : round_whole(ctx, x);
}

// A matrix [rows, cols] out of one of higher rank without gaps.
Tensor as_matrix(Tensor w) {
  FATHOM_CHECK(w.row_stride == w.cols());
  return {w.data, w.format, {w.size() / std::max<int64_t>(w.cols(), 1), w.cols()}};
}

}  // namespace

Tensor round_rows(Context& ctx, Tensor x, Precision precision, bool power_of_two, float amax_floor, int64_t parts) {
  if (precision != Precision::fp8) return round_without_tiles(ctx, x, precision);
  Tensor out = new_f32(ctx, {x.rows(), x.cols()});
  round_tiles_of_rows(ctx, out, x, power_of_two, cpu::kE4m3, amax_floor, parts);
  return out;
}

void round_to_e5m6(Context& ctx, Tensor x) { round_tiles_of_rows(ctx, x, x, /*power_of_two=*/true, cpu::kE5m6); }

Tensor round_columns(Context& ctx, Tensor x, Tensor offsets, Precision precision, bool power_of_two) {
  if (precision != Precision::fp8) return round_without_tiles(ctx, x, precision);
  const Tensor out = new_f32(ctx, {x.rows(), x.cols()});
  const ArenaScope scope(ctx.arena);
  const int64_t groups = offsets ? offsets.size() - 1 : 1;
  const auto begin_of = [&](int64_t g) { return offsets ? offsets.i32()[g] : g == 0 ? 0 : x.rows(); };
  struct Tile {
    int64_t first, rows;
  };
  auto* const tiles =
      static_cast<Tile*>(ctx.arena.allocate(static_cast<size_t>(groups + ceil_div(x.rows(), kTile)) * sizeof(Tile)));
  int64_t n_tiles = 0;
  for (int64_t g = 0; g < groups; ++g) {
    for (int64_t first = begin_of(g); first < begin_of(g + 1); first += kTile) {
      tiles[n_tiles++] = {first, std::min(kTile, begin_of(g + 1) - first)};
    }
  }
  constexpr int64_t kColumns = 128;  // of one task
  const int64_t parts = ceil_div(x.cols(), kColumns);
  const auto& kernel = kernels();
  ctx.pool.run(n_tiles * parts, [&](int64_t task, int) {
    const Tile tile = tiles[task / parts];
    const int64_t c = task % parts * kColumns;
    kernel.columns(out.f32_row(tile.first) + c, out.row_stride, x.f32_row(tile.first) + c, x.row_stride, tile.rows,
                   std::min(kColumns, x.cols() - c), power_of_two, cpu::kE4m3);
  });
  return out;
}

Tensor round_blocks(Context& ctx, Tensor w, Precision precision, int64_t parts) {
  if (precision == Precision::f32) return w;
  const Tensor in = as_matrix(w);
  Tensor out = w;
  if (precision != Precision::fp8) {
    out.data = round_without_tiles(ctx, in, precision).data;
    return out;
  }
  const Tensor rounded = new_f32(ctx, {in.rows(), in.cols()});
  out.data = rounded.data;
  const int64_t rows = (w.rank == 3 ? w.shape[1] : w.rows()) / parts;
  const int64_t matrices = in.rows() / std::max<int64_t>(rows, 1);
  FATHOM_CHECK(matrices * rows == in.rows());
  const int64_t down = ceil_div(rows, kTile), across = ceil_div(w.cols(), kTile);
  const auto& kernel = kernels();
  ctx.pool.run(matrices * down * across, [&](int64_t task, int) {
    const int64_t block = task / across % down, first = task / across / down * rows + block * kTile;
    const int64_t end = first + std::min(kTile, rows - block * kTile);
    const int64_t c = task % across * kTile, n = std::min(kTile, w.cols() - c);
    float largest = 0;
    for (int64_t r = first; r < end; ++r) largest = std::max(kernel.largest(in.f32_row(r) + c, n), largest);
    const float scale = tile_scale(largest, /*power_of_two=*/false, cpu::kE4m3);
    for (int64_t r = first; r < end; ++r) {
      kernel.scaled(rounded.f32_row(r) + c, in.f32_row(r) + c, n, scale, cpu::kE4m3);
    }
  });
  return out;
}

}  // namespace fathom
