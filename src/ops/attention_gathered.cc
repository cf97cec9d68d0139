#include "ops/attention_gathered.h"

#include <cstring>

#include "ops/cpu/gathered_attention_variants.h"

namespace fathom::attention {
namespace {

using cpu::kGatheredRows;

const cpu::GatheredAttentionKernels& gathering_kernels() {
  static const cpu::GatheredAttentionKernels& chosen = cpu::gathered_attention_kernels_of(cpu_isa());
  return chosen;
}

template <class T>
T* new_memory(Context& ctx, int64_t n) {
  return static_cast<T*>(ctx.arena.allocate(static_cast<size_t>(n) * sizeof(T)));
}

}  // namespace

Gathering gathering_of(const LatentRowLayout& layout) {
  if (layout.kv_lora_rank % 32 != 0 || layout.rope % 4 != 0) return Gathering::copied;
  if (layout.format == Format::f32) return Gathering::f32;
  return gathering_kernels().attend_bf16 != nullptr ? Gathering::bf16 : Gathering::copied;
}

double gathering_rate(Gathering how) {
  switch (how) {
    case Gathering::bf16:
      return 1.5;
    case Gathering::f32:
      return 0.9;
    case Gathering::copied:
      break;
  }
  return 0.5;
}

void pack_panels(float* panels, int64_t n, int64_t dim, Gathering how) {
  const cpu::GatheredAttentionKernels& k = gathering_kernels();
  const int64_t panel = dim * cpu::kQueryPanel;
  for (int64_t i = 0; i < n; ++i) {
    if (how == Gathering::f32) k.pack_f32(panels + i * panel, dim);
    if (how != Gathering::bf16) continue;
    k.pack_bf16(panels + i * panel, dim);
    std::copy_n(panels + i * panel, panel / 2, panels + i * panel / 2);
  }
}

Gatherer::Gatherer(Context& ctx, const MlaDims& dims, int64_t max_queries, bool converts)
    : dims_(dims),
      rows_(new_memory<const char*>(ctx, kGatheredRows)),
      ahead_(new_memory<const char*>(ctx, kGatheredRows)),
      strip_(new_memory<char>(ctx, cpu::kStripBytes)),
      scores_(new_floats(ctx, padded(max_queries) * kGatheredRows)) {
  const int64_t row_dim = dims.kv_lora_rank + dims.qk_rope_head_dim;
  auto* const zeros = new_floats(ctx, row_dim);
  std::fill_n(zeros, row_dim, 0.0f);
  zeros_ = reinterpret_cast<char*>(zeros);
  if (!converts) return;
  converted_ = new_memory<char>(ctx, kGatheredRows * row_dim * 2);
  row_ = new_floats(ctx, row_dim);
}

void Gatherer::attend(const Partial& out, const ChosenRows& chosen, const float* q_panels, int64_t n,
                      const ChosenRows& ahead) {
  const cpu::GatheredAttentionKernels& k = gathering_kernels();
  const LatentRowLayout layout = dims_.cached_row(chosen.sequence->format);
  const int64_t row_bytes = latent_row_bytes(layout), n_rows = std::ssize(chosen.rows);
  const auto find = [](const char** to, const ChosenRows& from, int64_t bytes) {
    for (const int32_t row : from.rows) *to++ = from.sequence->row(row, bytes);
  };
  find(rows_, chosen, row_bytes);
  std::fill(rows_ + n_rows, rows_ + round_up(n_rows, cpu::kRowTile), zeros_);
  const bool as_stored = layout.format == Format::f32 || layout.format == Format::bf16;
  for (int64_t i = 0; !as_stored && i < n_rows; ++i) {
    char* const row = converted_ + i * layout.dim() * 2;
    read_latent_rows(layout, row_, rows_[i], 1);
    k.narrow_row(row, row_, layout.dim());
    rows_[i] = row;
  }
  int64_t ahead_bytes = 0;
  if (!ahead.rows.empty()) {
    ahead_bytes = latent_row_bytes(dims_.cached_row(ahead.sequence->format));
    find(ahead_, ahead, ahead_bytes);
  }
  (layout.format == Format::f32 ? k.attend_f32 : k.attend_bf16)(
      {rows_, n_rows, layout.dim(), layout.kv_lora_rank, n, reinterpret_cast<const char*>(q_panels), scores_, strip_,
       out.largest, out.sum, out.out, ahead_, std::ssize(ahead.rows), ahead_bytes});
}

}  // namespace fathom::attention

namespace fathom {

int64_t gather_from(const MlaDims& dims, Format cache, int64_t topk) {
  const auto absorbed = static_cast<double>(2 * dims.kv_lora_rank + dims.qk_rope_head_dim);
  const auto expanded = static_cast<double>(dims.qk_nope_head_dim + dims.qk_rope_head_dim + dims.v_head_dim);
  const double rate = attention::gathering_rate(attention::gathering_of(dims.cached_row(cache)));
  return static_cast<int64_t>(static_cast<double>(topk) * absorbed / (expanded * rate));
}

}  // namespace fathom
