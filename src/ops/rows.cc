#include "ops/rows.h"

#include <algorithm>

#include "ops/grain.h"

namespace fathom {
namespace {

template <class From, class To>
void copy(Context& ctx, Tensor to, Tensor from, int64_t n, const From& from_row, const To& to_row) {
  FATHOM_CHECK(to.cols() == from.cols());
  ctx.pool.parallel_for(0, n, row_grain(from.cols()), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::copy_n(from.f32_row(from_row(i)), from.cols(), to.f32_row(to_row(i)));
  });
}

}  // namespace

void gather_rows(Context& ctx, Tensor to, Tensor from, std::span<const int32_t> rows) {
  FATHOM_CHECK(to.rows() == std::ssize(rows));
  copy(
      ctx, to, from, to.rows(), [&](int64_t i) { return rows[static_cast<size_t>(i)]; }, [](int64_t i) { return i; });
}

void scatter_rows(Context& ctx, Tensor to, Tensor from, std::span<const int32_t> rows) {
  FATHOM_CHECK(from.rows() == std::ssize(rows));
  copy(
      ctx, to, from, from.rows(), [](int64_t i) { return i; }, [&](int64_t i) { return rows[static_cast<size_t>(i)]; });
}

}  // namespace fathom
