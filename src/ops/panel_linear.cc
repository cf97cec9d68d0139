#include "ops/panel_linear.h"

#include <algorithm>
#include <vector>

#include "base/arithmetic.h"
#include "number/panels.h"
#include "ops/cpu/panel_variants.h"
#include "ops/device.h"
#include "ops/grain.h"

namespace fathom {
namespace {

constexpr int64_t kTasksPerThread = 8;           // so that the last to finish is not far behind
constexpr int64_t kMinBytes = int64_t{1} << 15;  // of weights in a task: a few microseconds of reading
constexpr int64_t kPanelsTogether = 4;           // what kernels take at once

const cpu::PanelKernels& kernels() {
  static const cpu::PanelKernels& chosen = cpu::panel_kernels_of(cpu_isa());
  return chosen;
}

using Kernel = void (*)(const cpu::PanelProduct&);
Kernel kernel_of(Format format) {
  const cpu::PanelKernels& k = kernels();
  switch (format) {
    case Format::q8_0:
      return k.q8_0;
    case Format::q4_0:
      return k.q4_0;
    case Format::q5_0:
      return k.q5_0;
    case Format::q4_k:
      return k.q4_k;
    case Format::q5_k:
      return k.q5_k;
    case Format::q6_k:
      return k.q6_k;
    case Format::f32:
      return k.f32;
    case Format::bf16:
      return k.bf16;
    case Format::f16:
      return k.f16;
    case Format::f8_e4m3:
      return k.f8_e4m3;
    default:
      break;
  }
  FATHOM_CHECK(false, "no panels of {}", format_traits(format).name);
  return nullptr;
}

// How rows of an input's form are made.
struct RowForm {
  void (*make)(uint8_t* out, const float* x, int64_t cols);
  int64_t bytes;
};
RowForm row_form(Tensor LinearInput::*form, int64_t cols) {
  if (form == &LinearInput::by_32) return {kernels().quantize_32, cpu::quantized_32_bytes(cols)};
  if (form == &LinearInput::by_256) return {kernels().quantize_256, cpu::quantized_256_bytes(cols)};
  return {kernels().lift_f8, cols * 4};
}

// Panels begin .. begin + n of a call.
struct Task {
  size_t call;
  int64_t begin, n;
};

}  // namespace

Tensor LinearInput::*form_for(const Context& ctx, Tensor w) {
  if (ctx.device != nullptr && w.panels && (w.format == Format::bf16 || w.format == Format::f8_e4m3)) {
    return &LinearInput::by_16;
  }
  if (w.panels && w.format == Format::f8_e4m3) return &LinearInput::by_f8;
  const int64_t block = w.panels ? format_traits(w.format).block : 1;
  return block == 32 ? &LinearInput::by_32 : block == 256 ? &LinearInput::by_256 : &LinearInput::x;
}

LinearInput LinearInput::slice(int64_t begin, int64_t n) const {
  LinearInput part = x.slice(begin, n);
  for (const auto form : kInputForms) {
    if (this->*form) part.*form = (this->*form).slice(begin, n);
  }
  return part;
}

LinearInput make_linear_input(Context& ctx, Tensor x, std::initializer_list<Tensor> weights) {
  if (ctx.device != nullptr) return ctx.device->operators.make_linear_input(ctx, x, weights);
  LinearInput input = x;
  const int64_t tokens = x.rows(), cols = x.cols();
  for (const Tensor& w : weights) {
    const auto form = form_for(ctx, w);
    if (!w || input.*form) continue;  // absent weights read none, and x is there
    const RowForm rows_form = row_form(form, cols);
    const Tensor rows = new_tensor(ctx, Format::u8, {tokens, rows_form.bytes});
    ctx.pool.parallel_for(0, tokens, row_grain(4 * cols), [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        rows_form.make(rows.as<uint8_t>() + t * rows_form.bytes, x.f32_row(t), cols);
    });
    input.*form = rows;
  }
  return input;
}

void panel_linear(Context& ctx, std::span<const PanelCall> calls) {
  int64_t total_bytes = 0;
  for (const PanelCall& call : calls) total_bytes += call.w.size_bytes();
  const int64_t task_bytes = std::max(kMinBytes, total_bytes / (ctx.pool.size() * kTasksPerThread));
  std::vector<Task> tasks;
  for (size_t i = 0; i < calls.size(); ++i) {
    const int64_t n_panels = ceil_div(calls[i].w.rows(), kPanelRows);
    const int64_t step = round_up(std::max<int64_t>(1, task_bytes / calls[i].w.row_stride), kPanelsTogether);
    for (int64_t panel = 0; panel < n_panels; panel += step) {
      tasks.push_back({i, panel, std::min(step, n_panels - panel)});
    }
  }
  ctx.pool.run(static_cast<int64_t>(tasks.size()), [&](int64_t i, int) {
    const Task& task = tasks[static_cast<size_t>(i)];
    const PanelCall& call = calls[task.call];
    const Tensor rows = call.x.*form_for(ctx, call.w);
    FATHOM_CHECK(rows, "no rows for {}", format_traits(call.w.format).name);
    const int64_t first = task.begin * kPanelRows;
    kernel_of(call.w.format)({call.x.x.rows(), call.w.cols(), static_cast<const uint8_t*>(rows.data),
                              rows.row_stride * format_bytes(rows.format),
                              static_cast<const uint8_t*>(call.w.data) + task.begin * call.w.row_stride,
                              call.w.row_stride, std::min(task.n * kPanelRows, call.w.rows() - first),
                              call.y.f32() + first, call.y.row_stride});
  });
}

}  // namespace fathom
