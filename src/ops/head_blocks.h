// The output head in blocks of tokens, so that no tokens x vocab matrix of the whole batch is ever stored: what every
// loss of logits and its gradient are made of.
#pragma once

#include <functional>
#include <span>

#include "ops/context.h"

namespace fathom {

// What is absent of dx and dw is not wanted.
struct HeadBlocks {
  Tensor x, w;    // [tokens, hidden] (after the final norm), [vocab, hidden]
  Tensor dx, dw;  // of x's and w's shape: dx overwritten (may not be x), dw added to
};

// Gives `use` the logits of `tokens` (rows of x, rising), a block after the other: rows [block.size(), vocab]. With dx
// or dw it leaves in their place the gradient of the logits, from which those are made; dx of all other tokens is zero.
void for_each_head_block(Context& ctx, const HeadBlocks& head, std::span<const int32_t> tokens,
                         const std::function<void(std::span<const int32_t> block, Tensor rows)>& use);

}  // namespace fathom
