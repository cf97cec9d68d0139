#include "ops/embedding.h"

#include <cstring>

#include "number/formats.h"
#include "ops/cpu/isa.h"
#include "ops/cpu/row_kernels.h"
#include "ops/device.h"
#include "ops/grain.h"

namespace fathom {
namespace {

const cpu::RowKernels& kernels() {
  return cpu::choose(cpu::baseline::row_kernels, cpu::avx2::row_kernels, cpu::avx512::row_kernels);
}

void check_ids(Tensor ids, int64_t vocab) {
  FATHOM_CHECK(ids.contiguous());
  for (int64_t t = 0; t < ids.size(); ++t) {
    const int32_t id = ids.i32()[t];
    if (id < 0 || id >= vocab) {
      throw Error("token id {} at position {} is not in the vocabulary of {} tokens: the tokenizer is not this model's",
                  id, t, vocab);
    }
  }
}

}  // namespace

void embedding(Context& ctx, Tensor y, Tensor ids, Tensor table) {
  const int64_t tokens = ids.size(), hidden = table.cols();
  FATHOM_CHECK(y.rows() == tokens && y.cols() == hidden);
  if (ctx.device != nullptr) return ctx.device->operators.embedding(ctx, y, ids, table);
  check_ids(ids, table.rows());
  ctx.pool.parallel_for(0, tokens, row_grain(hidden), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      to_f32(y.f32_row(t), table.at(ids.i32()[t] * table.row_stride), table.format, hidden);
    }
  });
}

void embedding_backward_weight(Context& ctx, Tensor dtable, Tensor dy, Tensor ids) {
  const int64_t tokens = ids.size(), hidden = dtable.cols();
  FATHOM_CHECK(dy.rows() == tokens && dy.cols() == hidden);
  if (ctx.device != nullptr) return ctx.device->operators.embedding_backward_weight(ctx, dtable, dy, ids);
  check_ids(ids, dtable.rows());
  // Tasks own columns, so that every row of the table is summed in order of t.
  const auto& kernel = kernels();
  ctx.pool.parallel_for(0, hidden, column_grain(tokens), [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < tokens; ++t) {
      float* row = dtable.f32_row(ids.i32()[t]) + begin;
      kernel.add(row, row, dy.f32_row(t) + begin, end - begin);
    }
  });
}

void add(Context& ctx, Tensor out, Tensor a, Tensor b) {
  const int64_t rows = out.rows(), cols = out.cols();
  FATHOM_CHECK(a.rows() == rows && a.cols() == cols && b.rows() == rows && b.cols() == cols);
  if (ctx.device != nullptr) return ctx.device->operators.add(ctx, out, a, b);
  const auto& kernel = kernels();
  ctx.pool.parallel_for(0, rows, row_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) kernel.add(out.f32_row(r), a.f32_row(r), b.f32_row(r), cols);
  });
}

void add_bias(Context& ctx, Tensor x, Tensor bias) {
  const int64_t cols = x.cols();
  FATHOM_CHECK(ctx.device == nullptr && bias.rank == 1 && bias.cols() == cols);
  const auto& kernel = kernels();
  ctx.pool.parallel_for(0, x.rows(), row_grain(cols), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) kernel.add(x.f32_row(t), x.f32_row(t), bias.f32(), cols);
  });
}

void add_bias_backward(Context& ctx, Tensor d_bias, Tensor dx) {
  FATHOM_CHECK(ctx.device == nullptr && d_bias.rank == 1 && d_bias.cols() == dx.cols());
  const auto& kernel = kernels();
  ctx.pool.parallel_for(0, dx.cols(), column_grain(dx.rows()), [&](int64_t begin, int64_t end) {
    float* const sums = d_bias.f32() + begin;
    for (int64_t t = 0; t < dx.rows(); ++t) kernel.add(sums, sums, dx.f32_row(t) + begin, end - begin);
  });
}

void fill_zero(Context& ctx, Tensor x) {
  FATHOM_CHECK(x.contiguous());
  const auto bytes = static_cast<size_t>(x.size_bytes());
  if (ctx.device != nullptr) return ctx.device->fill_zero(*ctx.device, x.data, bytes);
  std::memset(x.data, 0, bytes);
}

}  // namespace fathom
