// Some rows of a matrix, copied apart and back.
#pragma once

#include <span>

#include "ops/context.h"

namespace fathom {

// to[i] = from[rows[i]];  to: [rows.size(), cols] f32
void gather_rows(Context& ctx, Tensor to, Tensor from, std::span<const int32_t> rows);
// to[rows[i]] = from[i], and the others stay; no row comes twice.
void scatter_rows(Context& ctx, Tensor to, Tensor from, std::span<const int32_t> rows);

}  // namespace fathom
