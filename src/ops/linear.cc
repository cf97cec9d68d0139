#include "ops/linear.h"

#include <vector>

#include "ops/device.h"
#include "ops/gemm.h"
#include "ops/panel_linear.h"

namespace fathom {
namespace {

void check_shapes(Tensor tokens_out, Tensor tokens_in, Tensor w) {
  FATHOM_CHECK(tokens_out.rows() == tokens_in.rows() && tokens_out.cols() == w.rows() && tokens_in.cols() == w.cols(),
               "[{}, {}], [{}, {}] and a weight [{}, {}]", tokens_out.rows(), tokens_out.cols(), tokens_in.rows(),
               tokens_in.cols(), w.rows(), w.cols());
}

// What FP8 tensor cores add up before they hand over to f32 (V3 section 3.3.2): as much as has one scale.
int64_t depth_in(Precision precision) { return is_fp8(precision) ? 128 : 0; }

GemmCall linear_call(Tensor y, Tensor x, Tensor w, bool accumulate, Precision precision = Precision::f32) {
  check_shapes(y, x, w);
  return {{x.rows(), w.rows(), w.cols(), false, true, x.row_stride, w.row_stride, y.row_stride},
          x.f32(),
          w.f32(),
          y.f32(),
          accumulate,
          depth_in(precision)};
}

GemmCall backward_input_call(Tensor dx, Tensor dy, Tensor w, bool accumulate, Precision precision) {
  check_shapes(dy, dx, w);
  return {{dy.rows(), w.cols(), w.rows(), false, false, dy.row_stride, w.row_stride, dx.row_stride},
          dy.f32(),
          w.f32(),
          dx.f32(),
          accumulate,
          depth_in(precision)};
}

GemmCall backward_weight_call(Tensor dw, Tensor dy, Tensor x, Precision precision) {
  check_shapes(dy, x, dw);
  return {{dw.rows(), dw.cols(), x.rows(), true, false, dy.row_stride, x.row_stride, dw.row_stride},
          dy.f32(),
          x.f32(),
          dw.f32(),
          true,
          depth_in(precision)};
}

// visit(first row, rows, expert) for every expert that has rows.
template <class Visit>
void for_each_group(Tensor offsets, int64_t n_rows, Tensor w, const Visit& visit) {
  const int64_t n_experts = w.shape[0];
  const int32_t* offset = offsets.i32();
  FATHOM_CHECK(w.rank == 3 && offsets.size() == n_experts + 1 && offset[0] == 0 && offset[n_experts] == n_rows);
  for (int64_t e = 0; e < n_experts; ++e) {
    const int64_t n = offset[e + 1] - offset[e];
    FATHOM_CHECK(n >= 0, "expert {} has {} rows", e, n);
    if (n > 0) visit(offset[e], n, e);
  }
}

// make_call(first row, rows, expert)
template <class MakeCall>
void run_grouped(Context& ctx, Tensor offsets, Tensor x, Tensor w, const MakeCall& make_call) {
  std::vector<GemmCall> calls;
  for_each_group(offsets, x.rows(), w,
                 [&](int64_t begin, int64_t n, int64_t e) { calls.push_back(make_call(begin, n, e)); });
  gemm_many(ctx, calls);
}

// x as products along its rows read it, made once for all calls that share it.
class RoundedRows {
 public:
  explicit RoundedRows(Context& ctx) : ctx_(ctx) {}
  Tensor operator()(Tensor x, const Rounding& r) {
    for (const Entry& e : made_) {
      if (e.from == x.data && e.precision == r.precision && e.power_of_two == r.x_power_of_two) return e.rounded;
    }
    made_.push_back({x.data, r.precision, r.x_power_of_two, round_rows(ctx_, x, r.precision, r.x_power_of_two)});
    return made_.back().rounded;
  }

 private:
  struct Entry {
    const void* from;
    Precision precision;
    bool power_of_two;
    Tensor rounded;
  };
  Context& ctx_;
  std::vector<Entry> made_;
};

// x as the weight's gradient reads it: FP8 keeps it for the backward pass in tiles along the rows.
Tensor round_kept_columns(Context& ctx, Tensor x, Tensor offsets, const Rounding& r) {
  const bool in_rows = is_fp8(r.precision) && !r.x_in_e5m6;
  const Tensor kept = in_rows ? round_rows(ctx, x, r.precision, r.x_power_of_two) : x;
  return round_columns(ctx, kept, offsets, r.precision, r.x_power_of_two);
}

}  // namespace

void linear(Context& ctx, std::initializer_list<LinearCall> calls) {
  if (ctx.device != nullptr) {
    for (const LinearCall& call : calls) {
      FATHOM_CHECK(!is_fp8(call.rounding.precision) && (!call.w.panels || call.rounding.precision == Precision::f32));
    }
    return ctx.device->operators.linear(ctx, calls);
  }
  const ArenaScope scope(ctx.arena);
  RoundedRows rounded_rows(ctx);
  std::vector<GemmCall> in_f32;
  std::vector<PanelCall> in_panels;
  const auto add = [&](Tensor y, const LinearInput& x, Tensor w, Precision precision) {
    if (w.panels) {
      check_shapes(y, x.x, w);
      in_panels.push_back({y, x, w});
    } else {
      in_f32.push_back(linear_call(y, x.x, w, false, precision));
    }
  };
  for (const LinearCall& call : calls) {
    const Rounding& rounding = call.rounding;
    LinearInput x = call.x;
    Tensor w = call.w;
    if (rounding.precision != Precision::f32) {
      FATHOM_CHECK(!w.panels);
      x = rounded_rows(call.x.x, rounding);
      w = round_blocks(ctx, w, rounding.precision, rounding.w_parts);
    }
    if (!call.offsets) {
      add(call.y, x, w, rounding.precision);
      continue;
    }
    for_each_group(call.offsets, x.x.rows(), w, [&](int64_t begin, int64_t n, int64_t e) {
      add(call.y.slice(begin, n), x.slice(begin, n), w[e], rounding.precision);
    });
  }
  if (!in_f32.empty()) gemm_many(ctx, in_f32);
  if (!in_panels.empty()) panel_linear(ctx, in_panels);
}

void linear(Context& ctx, Tensor y, const LinearInput& x, Tensor w, bool accumulate) {
  if (!accumulate) return linear(ctx, {{y, x, w}});
  FATHOM_CHECK(!w.panels && ctx.device == nullptr);
  const GemmCall call = linear_call(y, x.x, w, true);
  gemm_many(ctx, {&call, 1});
}

void linear_backward_input(Context& ctx, Tensor dx, Tensor dy, Tensor w, bool accumulate, const Rounding& r) {
  if (ctx.device != nullptr) {
    check_shapes(dy, dx, w);
    FATHOM_CHECK(w.rank == 2 && !w.panels && !is_fp8(r.precision));
    return ctx.device->operators.linear_backward_input(ctx, dx, dy, w, {}, accumulate, r.precision);
  }
  const ArenaScope scope(ctx.arena);
  const GemmCall call = backward_input_call(dx, round_rows(ctx, dy, r.precision, r.dy_power_of_two, 0, r.w_parts),
                                            round_blocks(ctx, w, r.precision, r.w_parts), accumulate, r.precision);
  gemm_many(ctx, {&call, 1});
}

void linear_backward_weight(Context& ctx, std::initializer_list<WeightGradientCall> calls) {
  if (ctx.device != nullptr) {
    std::vector<WeightGradientCall> wanted;
    for (const WeightGradientCall& call : calls) {
      if (call.dw) wanted.push_back(call);
    }
    return ctx.device->operators.linear_backward_weight(ctx, wanted);
  }
  const ArenaScope scope(ctx.arena);
  std::vector<GemmCall> products;
  for (const auto& [dw, dy, x, offsets, rounding] : calls) {
    if (!dw) continue;
    const Precision precision = rounding.precision;
    const Tensor dy_columns = round_columns(ctx, dy, offsets, rounding.precision, rounding.dy_power_of_two);
    const Tensor x_columns = round_kept_columns(ctx, x, offsets, rounding);
    if (!offsets) {
      products.push_back(backward_weight_call(dw, dy_columns, x_columns, precision));
      continue;
    }
    const Tensor of_experts = dw;  // what a lambda can capture
    for_each_group(offsets, x.rows(), dw, [&](int64_t begin, int64_t n, int64_t e) {
      products.push_back(
          backward_weight_call(of_experts[e], dy_columns.slice(begin, n), x_columns.slice(begin, n), precision));
    });
  }
  gemm_many(ctx, products);
}

void grouped_linear(Context& ctx, Tensor y, const LinearInput& x, Tensor w, Tensor offsets, bool accumulate) {
  if (!accumulate) return linear(ctx, {{y, x, w, offsets}});
  FATHOM_CHECK(!w.panels);
  run_grouped(ctx, offsets, x.x, w, [&](int64_t begin, int64_t n, int64_t e) {
    return linear_call(y.slice(begin, n), x.x.slice(begin, n), w[e], true);
  });
}

void grouped_linear_backward_input(Context& ctx, Tensor dx, Tensor dy, Tensor w, Tensor offsets, bool accumulate,
                                   const Rounding& r) {
  if (ctx.device != nullptr) {
    FATHOM_CHECK(w.rank == 3 && !w.panels && !is_fp8(r.precision) && offsets.size() == w.shape[0] + 1);
    FATHOM_CHECK(dy.rows() == dx.rows() && dy.cols() == w.shape[1] && dx.cols() == w.shape[2]);
    return ctx.device->operators.linear_backward_input(ctx, dx, dy, w, offsets, accumulate, r.precision);
  }
  const ArenaScope scope(ctx.arena);
  const Tensor rows = round_rows(ctx, dy, r.precision, r.dy_power_of_two, 0, r.w_parts);
  const Tensor blocks = round_blocks(ctx, w, r.precision, r.w_parts);
  run_grouped(ctx, offsets, dy, w, [&](int64_t begin, int64_t n, int64_t e) {
    return backward_input_call(dx.slice(begin, n), rows.slice(begin, n), blocks[e], accumulate, r.precision);
  });
}

}  // namespace fathom
