#include "ops/experts.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "ops/cpu/isa.h"
#include "ops/cpu/row_kernels.h"
#include "ops/device.h"
#include "ops/grain.h"

namespace fathom {
namespace {

const cpu::RowKernels& kernels() {
  return cpu::choose(cpu::baseline::row_kernels, cpu::avx2::row_kernels, cpu::avx512::row_kernels);
}

const int32_t* slots_of(const Dispatch& d, int64_t token) { return d.slot_of.i32() + token * d.slot_of.row_stride; }

// y[t] += sum over its choices of weights[t, choice] * sorted[slot], absent weights being ones.
void add_choices(Context& ctx, Tensor y, Tensor sorted, Tensor weights, const Dispatch& d) {
  const int64_t tokens = d.slot_of.rows(), k = d.slot_of.cols(), hidden = y.cols();
  FATHOM_CHECK(y.rows() == tokens && sorted.rows() == d.token_of.cols() && sorted.cols() == hidden);
  const auto& kernel = kernels();
  ctx.pool.parallel_for(0, tokens, row_grain((k + 1) * hidden), [&](int64_t begin, int64_t end) {
    std::vector<const float*> rows(k);
    std::vector<float> factors(k, 1);
    for (int64_t t = begin; t < end; ++t) {
      size_t n = 0;
      for (int64_t choice = 0; choice < k; ++choice) {
        const int32_t slot = slots_of(d, t)[choice];
        if (slot < 0) continue;
        if (weights) factors[n] = weights.f32(t, choice);
        rows[n++] = sorted.f32_row(slot);
      }
      kernel.add_weighted(y.f32_row(t), rows.data(), factors.data(), static_cast<int64_t>(n), hidden);
    }
  });
}

}  // namespace

Dispatch make_dispatch(Context& ctx, Tensor topk_ids, int64_t n_routed_experts) {
  const int64_t tokens = topk_ids.rows(), k = topk_ids.cols();
  FATHOM_CHECK(tokens * k <= std::numeric_limits<int32_t>::max());
  if (ctx.device != nullptr) return ctx.device->operators.make_dispatch(ctx, topk_ids, n_routed_experts);
  int64_t slots = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    const int32_t* ids = topk_ids.i32() + t * topk_ids.row_stride;
    slots += k - std::count(ids, ids + k, -1);
  }
  const Dispatch d = {new_i32(ctx, {n_routed_experts + 1}), new_i32(ctx, {slots}), new_i32(ctx, {slots}),
                      new_i32(ctx, {tokens, k})};
  int32_t* offsets = d.offsets.i32();
  std::fill_n(offsets, n_routed_experts + 1, 0);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t choice = 0; choice < k; ++choice) {
      const int32_t expert = topk_ids.i32()[t * topk_ids.row_stride + choice];
      if (expert == -1) continue;
      FATHOM_CHECK(expert >= 0 && expert < n_routed_experts, "expert {} of {}", expert, n_routed_experts);
      ++offsets[expert + 1];
    }
  }
  for (int64_t e = 0; e < n_routed_experts; ++e) offsets[e + 1] += offsets[e];
  std::vector<int32_t> next(offsets, offsets + n_routed_experts);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t choice = 0; choice < k; ++choice) {
      const int32_t expert = topk_ids.i32()[t * topk_ids.row_stride + choice];
      if (expert == -1) {
        d.slot_of.i32()[t * k + choice] = -1;
        continue;
      }
      const int32_t slot = next[expert]++;
      d.token_of.i32()[slot] = static_cast<int32_t>(t);
      d.choice_of.i32()[slot] = static_cast<int32_t>(choice);
      d.slot_of.i32()[t * k + choice] = slot;
    }
  }
  return d;
}

void dispatch(Context& ctx, Tensor x_sorted, Tensor x, const Dispatch& d) {
  const int64_t tokens = d.slot_of.rows(), k = d.slot_of.cols();
  FATHOM_CHECK(x.format == x_sorted.format && x.rows() == tokens && x_sorted.rows() == d.token_of.cols() &&
               x_sorted.cols() == x.cols());
  if (ctx.device != nullptr) return ctx.device->operators.dispatch(ctx, x_sorted, x, d);
  const int64_t row_bytes = format_bytes(x.format, x.cols());
  ctx.pool.parallel_for(0, tokens, row_grain((k + 1) * row_bytes / 4), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t choice = 0; choice < k; ++choice) {
        const int32_t slot = slots_of(d, t)[choice];
        if (slot < 0) continue;
        std::memcpy(x_sorted.at(slot * x_sorted.row_stride), x.at(t * x.row_stride), static_cast<size_t>(row_bytes));
      }
    }
  });
}

LinearInput dispatch(Context& ctx, const LinearInput& x, const Dispatch& d, Tensor w) {
  const int64_t slots = d.token_of.cols();
  if (ctx.device != nullptr) {  // whose products read rows where they are
    LinearInput sorted = x;
    sorted.x.shape[0] = slots;
    sorted.rows = d.token_of;
    return sorted;
  }
  LinearInput sorted = Tensor(nullptr, Format::f32, {slots, x.x.cols()});
  const auto form = form_for(ctx, w);
  sorted.*form = new_tensor(ctx, (x.*form).format, {slots, (x.*form).cols()});
  dispatch(ctx, sorted.*form, x.*form, d);
  return sorted;
}

void dispatch_backward(Context& ctx, Tensor dx, Tensor dx_sorted, const Dispatch& d) {
  if (ctx.device != nullptr) return ctx.device->operators.dispatch_backward(ctx, dx, dx_sorted, d);
  add_choices(ctx, dx, dx_sorted, {}, d);
}

void combine(Context& ctx, Tensor y, Tensor y_sorted, Tensor topk_weights, const Dispatch& d) {
  FATHOM_CHECK(topk_weights.rows() == d.slot_of.rows() && topk_weights.cols() == d.slot_of.cols());
  if (ctx.device != nullptr) return ctx.device->operators.combine(ctx, y, y_sorted, topk_weights, d);
  add_choices(ctx, y, y_sorted, topk_weights, d);
}

void combine_backward(Context& ctx, Tensor dy_sorted, Tensor dy, Tensor topk_weights, const Dispatch& d) {
  const int64_t tokens = d.slot_of.rows(), k = d.slot_of.cols(), slots = d.token_of.cols(), hidden = dy.cols();
  FATHOM_CHECK(dy.rows() == tokens && dy_sorted.rows() == slots && dy_sorted.cols() == hidden);
  FATHOM_CHECK(topk_weights.rows() == tokens && topk_weights.cols() == k);
  if (ctx.device != nullptr) return ctx.device->operators.combine_backward(ctx, dy_sorted, dy, topk_weights, d);
  const auto& kernel = kernels();
  ctx.pool.parallel_for(0, slots, row_grain(hidden), [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      const int32_t t = d.token_of.i32()[slot];
      kernel.scale(dy_sorted.f32_row(slot), dy.f32_row(t), topk_weights.f32(t, d.choice_of.i32()[slot]), hidden);
    }
  });
}

void combine_backward_weights(Context& ctx, Tensor d_weights, Tensor d_inner, Tensor inner, Tensor topk_weights,
                              const Dispatch& d) {
  const int64_t tokens = d.slot_of.rows(), k = d.slot_of.cols(), slots = d.token_of.cols(), inter = inner.cols();
  FATHOM_CHECK(inner.rows() == slots && d_inner.rows() == slots && d_inner.cols() == inter);
  FATHOM_CHECK(d_weights.rows() == tokens && d_weights.cols() == k);
  FATHOM_CHECK(topk_weights.rows() == tokens && topk_weights.cols() == k);
  if (ctx.device != nullptr) {
    return ctx.device->operators.combine_backward_weights(ctx, d_weights, d_inner, inner, topk_weights, d);
  }
  const auto& kernel = kernels();
  for (int64_t t = 0; t < tokens && slots < tokens * k; ++t) std::fill_n(d_weights.f32_row(t), k, 0.0f);
  ctx.pool.parallel_for(0, slots, row_grain(inter), [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      const int32_t t = d.token_of.i32()[slot], choice = d.choice_of.i32()[slot];
      const float weight = topk_weights.f32(t, choice);
      d_weights.f32(t, choice) =
          weight != 0 ? kernel.dot(d_inner.f32_row(slot), inner.f32_row(slot), inter) / weight : 0;
    }
  });
}

}  // namespace fathom
