#include "ops/head_blocks.h"

#include <algorithm>

#include "ops/gemm.h"
#include "ops/linear.h"
#include "ops/rows.h"

namespace fathom {
namespace {

constexpr int64_t kLogitsFloats = int64_t{4} << 20;  // a block of logits takes about so many,
constexpr int64_t kMinTokens = 64;                   // but has no fewer tokens than this: every block reads all of w
constexpr int64_t kMaxTokens = 512;

}  // namespace

void for_each_head_block(Context& ctx, const HeadBlocks& head, std::span<const int32_t> tokens,
                         const std::function<void(std::span<const int32_t> block, Tensor rows)>& use) {
  const int64_t hidden = head.x.cols(), vocab = head.w.rows();
  FATHOM_CHECK(head.x.rank == 2 && head.w.rank == 2 && hidden == head.w.cols() && vocab > 0);
  FATHOM_CHECK(!head.dx ||
               (head.dx.data != head.x.data && head.dx.rows() == head.x.rows() && head.dx.cols() == hidden));
  FATHOM_CHECK(!head.dw || (head.dw.rows() == vocab && head.dw.cols() == hidden));
  if (head.dx) {
    for (int64_t t = 0, wanted = 0; t < head.x.rows(); ++t) {
      if (wanted < std::ssize(tokens) && tokens[static_cast<size_t>(wanted)] == t) {
        ++wanted;
      } else {
        std::fill_n(head.dx.f32_row(t), hidden, 0.0f);
      }
    }
  }
  const auto at_most = static_cast<size_t>(std::clamp(kLogitsFloats / vocab, kMinTokens, kMaxTokens));
  while (!tokens.empty()) {
    const std::span<const int32_t> block = tokens.first(std::min(at_most, tokens.size()));
    tokens = tokens.subspan(block.size());
    const ArenaScope scope(ctx.arena);
    const int64_t n = std::ssize(block);
    const bool in_place = block.back() - block.front() == n - 1;
    const Tensor x = in_place ? head.x.slice(block[0], n) : new_f32(ctx, {n, hidden});
    if (!in_place) gather_rows(ctx, x, head.x, block);
    const Tensor rows = new_f32(ctx, {n, vocab});
    linear(ctx, rows, make_linear_input(ctx, x, {head.w}), head.w);
    use(block, rows);
    if (head.dx) {
      const Tensor dx = in_place ? head.dx.slice(block[0], n) : new_f32(ctx, {n, hidden});
      gemm(ctx, {n, hidden, vocab, false, false, vocab, head.w.row_stride, dx.row_stride}, rows.f32(), head.w.f32(),
           dx.f32(), false);
      if (!in_place) scatter_rows(ctx, head.dx, dx, block);
    }
    if (!head.dw) continue;
    gemm(ctx, {vocab, hidden, n, true, false, vocab, x.row_stride, head.dw.row_stride}, rows.f32(), x.f32(),
         head.dw.f32(), true);
  }
}

}  // namespace fathom
