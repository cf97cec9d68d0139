// Products with weights in panels (number/panels.h), as linear() and grouped_linear() hand them out.
#pragma once

#include <span>

#include "ops/linear.h"

namespace fathom {

struct PanelCall {
  Tensor y;       // [tokens, out]
  LinearInput x;  // [tokens, in]
  Tensor w;       // [out, in], in panels
};
// All calls in one go: the threads share the work of all.
void panel_linear(Context& ctx, std::span<const PanelCall> calls);

}  // namespace fathom
