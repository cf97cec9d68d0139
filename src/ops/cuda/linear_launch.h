// The kernels of linear layers by the format of their weights; each call has at least a token.
#pragma once

#include <span>

#include "ops/context.h"
#include "ops/cuda/linear_call.h"

namespace fathom::cuda {

inline constexpr int64_t kFewTokens = 8;  // up to so many a block has few rows of the weight

// Tokens that a matrix may be expected to have.
int64_t usual_tokens(const PanelCall& call);

void launch_q4_0(Context& ctx, std::span<const PanelCall> calls);
void launch_q5_0(Context& ctx, std::span<const PanelCall> calls);
void launch_q8_0(Context& ctx, std::span<const PanelCall> calls);
void launch_q4_k(Context& ctx, std::span<const PanelCall> calls);
void launch_q5_k(Context& ctx, std::span<const PanelCall> calls);
void launch_q6_k(Context& ctx, std::span<const PanelCall> calls);
void launch_bf16(Context& ctx, std::span<const PanelCall> calls);
void launch_f8_e4m3(Context& ctx, std::span<const PanelCall> calls);
void launch_f32(Context& ctx, std::span<const PanelCall> calls);
void launch_f16(Context& ctx, std::span<const PanelCall> calls);

}  // namespace fathom::cuda
