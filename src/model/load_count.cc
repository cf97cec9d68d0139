#include "model/load_count.h"

#include "ops/device.h"

namespace fathom {

LoadCount::LoadCount(Context& ctx, ExpertLoad* load, const ModelConfig& config, size_t n_layers)
    : load_(load), experts_(config.router.n_routed_experts) {
  if (load != nullptr && ctx.device != nullptr) {
    offsets_ = new_i32(ctx, {static_cast<int64_t>(n_layers), experts_ + 1});
  }
}

void LoadCount::add(Context& ctx, const MoeSaved& s) {
  if (load_ == nullptr) return;
  if (ctx.device == nullptr) {
    count_expert_load(Tensor(append().data(), Format::i64, {experts_}), s.topk_ids);
    return;
  }
  const Tensor offsets = s.dispatch.offsets;
  FATHOM_CHECK(offsets.size() == experts_ + 1 && n_ < offsets_.rows());
  ctx.device->copy(*ctx.device, offsets_.at(n_++ * offsets_.row_stride), offsets.data,
                   static_cast<size_t>(offsets.size_bytes()));
}

void LoadCount::finish(Context& ctx) {
  if (n_ == 0) return;
  Buffer memory;
  const Tensor here = on_host(ctx, offsets_, memory);
  for (int64_t l = 0; l < n_; ++l) {
    const int32_t* const offsets = here.i32() + l * here.row_stride;
    std::vector<int64_t>& load = append();
    for (int64_t e = 0; e < experts_; ++e) load[static_cast<size_t>(e)] = offsets[e + 1] - offsets[e];
  }
}

std::vector<int64_t>& LoadCount::append() { return load_->emplace_back(static_cast<size_t>(experts_)); }

}  // namespace fathom
