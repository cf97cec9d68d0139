// The operands of products as narrower formats hold them, emulated: rounded to what the format has, and left f32. With
// products in f32, summed over 128 at a time (GemmCall::depth), this is mixed-precision training as V3 section 3.3 has
// it: in FP8 a scale for each tile of 128 numbers along the dimension that is summed over, for each 128 x 128 of a
// weight, all e4m3.
#pragma once

#include "ops/context.h"

namespace fathom {

enum class Precision {
  f32,
  bf16,
  fp8,
  fp8_per_tensor  // one scale for a whole operand, as others had it before: to see what the tiles are good for
};
constexpr bool is_fp8(Precision p) { return p == Precision::fp8 || p == Precision::fp8_per_tensor; }

// How the operands of a linear layer's three products are rounded: x and w forwards, dy and w for the gradient of the
// input, dy and x for that of the weight.
struct Rounding {
  Precision precision = Precision::f32;
  // Scales of tiles rounded up to powers of two, for what is tiled both ways or sent (V3 section 3.3.3).
  bool x_power_of_two = false, dy_power_of_two = false;
  // x has been through round_to_e5m6: its tiles along the tokens are made from that, others from those along a row.
  bool x_in_e5m6 = false;
  // w is so many matrices one above the other (gate and up), each with its own blocks and, in dy, its own tiles.
  int64_t w_parts = 1;
};

// Each returns x itself for f32, else memory from ctx.arena. A tile's scale is its largest magnitude / 448, but no less
// than the least normal float; NaN stays NaN.
// Tiles of 1 x 128, the largest magnitude being amax_floor at the least; begun anew in each of `parts` equal parts of a
// row.   x: [tokens, cols]
Tensor round_rows(Context& ctx, Tensor x, Precision precision, bool power_of_two = false, float amax_floor = 0,
                  int64_t parts = 1);
// Tiles of 128 x 1, begun anew where a group of rows begins: offsets [groups + 1] i32, or absent for one group.
Tensor round_columns(Context& ctx, Tensor x, Tensor offsets, Precision precision, bool power_of_two = false);
// Blocks of 128 x 128 of each matrix, which may be `parts` of equal height.   w: [out, in] or [matrices, out, in],
// without gaps
Tensor round_blocks(Context& ctx, Tensor w, Precision precision, int64_t parts = 1);
// In place, tiles of 1 x 128 in 1 + 5 + 6 bits with scales that are powers of two: what V3 keeps of the attention's
// output for the backward pass.
void round_to_e5m6(Context& ctx, Tensor x);

// Number by number.
namespace plain {
void round_rows(Tensor out, Tensor x, bool power_of_two = false);
void round_columns(Tensor out, Tensor x, Tensor offsets, bool power_of_two = false);
void round_blocks(Tensor out, Tensor w);
void round_to_e5m6(Tensor x);
}  // namespace plain

}  // namespace fathom
