#include "model/host_experts.h"

#include <algorithm>
#include <numeric>

#include "base/arithmetic.h"
#include "base/error.h"
#include "model/weights.h"
#include "ops/device.h"

namespace fathom {
namespace {

constexpr int64_t kPassesBetweenMoves = 16;
constexpr int64_t kLeastTokens = 256;  // that staging has room for

// Every MoE layer, those of MTP modules too.
template <class Visit>
void for_each_moe(ModelWeights& weights, const Visit& visit) {
  for (LayerWeights& layer : weights.layers) {
    if (layer.moe.gate) visit(layer.moe);
  }
  for (MtpWeights& module : weights.mtp) {
    if (module.layer.moe.gate) visit(module.layer.moe);
  }
}

int64_t expert_bytes(Tensor of_all) { return of_all.size_bytes() / of_all.shape[0]; }
void* expert_at(Tensor of_all, int64_t expert) {
  return static_cast<std::byte*>(of_all.data) + expert * expert_bytes(of_all);
}

void upload_expert(const Device& device, Tensor to, int64_t place, Tensor from, int64_t expert) {
  device.upload(device, expert_at(to, place), expert_at(from, expert), static_cast<size_t>(expert_bytes(from)));
}

}  // namespace

int64_t HostExperts::bytes_of_one(const ModelWeights& weights) {
  ModelWeights views = weights;
  int64_t bytes = 0;
  for_each_moe(views, [&](const MoeWeights& moe) { bytes += expert_bytes(moe.gate_up) + expert_bytes(moe.down); });
  return bytes;
}

HostExperts::HostExperts(ModelWeights& weights, const Device& device, int64_t n_on_device, int n_threads)
    : device_(device), n_on_device_(n_on_device), pool_(n_threads) {
  const auto first_of = [&](Tensor of_all) {
    if (n_on_device == 0) return Tensor();
    device_memory_.push_back(device.allocate(static_cast<size_t>(n_on_device * expert_bytes(of_all))));
    Tensor some = of_all;
    some.shape[0] = n_on_device;
    some.data = device_memory_.back().data();
    for (int64_t e = 0; e < n_on_device; ++e) upload_expert(device, some, e, of_all, e);
    return some;
  };
  for_each_moe(weights, [&](MoeWeights& moe) {
    const int64_t experts = moe.gate_up.shape[0];
    FATHOM_CHECK(n_on_device >= 0 && n_on_device <= experts && moe.down.shape[0] == experts);
    HostLayer layer{moe.gate_up, moe.down, std::vector<int32_t>(static_cast<size_t>(experts), -1), {}, {}};
    layer.chosen.resize(static_cast<size_t>(experts));
    std::iota(layer.place.begin(), layer.place.begin() + n_on_device, 0);
    device_memory_.push_back(device.allocate(static_cast<size_t>(experts) * sizeof(int32_t)));
    layer.device_place = Tensor(device_memory_.back().data(), Format::i32, {experts});
    device.upload(device, layer.device_place.data, layer.place.data(), layer.place.size() * sizeof(int32_t));
    moe.gate_up = first_of(moe.gate_up);
    moe.down = first_of(moe.down);
    layers_.push_back({std::move(layer), moe.gate_up, moe.down});
    moe.host = &layers_.back().layer;
  });
  device.synchronize(device);
}

HostExperts::~HostExperts() {
  try {
    device_.synchronize(device_);
  } catch (const Error&) {
    // Whoever asked for the pass has been told, or has left it.
  }
}

HostExperts::Staging HostExperts::staging(int64_t tokens, int64_t hidden, int64_t k) {
  const auto bytes_of = [&](int64_t n) {
    return 2 * round_up(n * hidden * int64_t{sizeof(float)}, int64_t{kAlignment}) +
           2 * round_up(n * k * int64_t{sizeof(float)}, int64_t{kAlignment});
  };
  if (tokens > staged_tokens_) {
    staged_tokens_ = std::max({tokens, 2 * staged_tokens_, kLeastTokens});
    staging_memory_.push_back(device_.allocate_pinned(static_cast<size_t>(bytes_of(staged_tokens_))));
  }
  auto* at = static_cast<std::byte*>(staging_memory_.back().data());
  const auto next = [&](Format format, int64_t cols) {
    const Tensor t(at, format, {tokens, cols});
    at += round_up(t.size_bytes(), int64_t{kAlignment});
    return t;
  };
  Staging s;
  s.x = next(Format::f32, hidden);
  s.topk_ids = next(Format::i32, k);
  s.topk_weights = next(Format::f32, k);
  s.y = next(Format::f32, hidden);
  return s;
}

bool HostExperts::move_one(Held& held) {
  HostLayer& layer = held.layer;
  int64_t hottest = -1, coldest = -1;  // of the host's, of the device's
  for (int64_t e = 0; e < std::ssize(layer.place); ++e) {
    const bool is_here = layer.place[static_cast<size_t>(e)] < 0;
    int64_t& best = is_here ? hottest : coldest;
    const auto uses = [&](int64_t expert) { return layer.chosen[static_cast<size_t>(expert)]; };
    if (best < 0 || (is_here ? uses(e) > uses(best) : uses(e) < uses(best))) best = e;
  }
  if (hottest < 0 || coldest < 0) return false;
  const int64_t gain = layer.chosen[static_cast<size_t>(hottest)] - layer.chosen[static_cast<size_t>(coldest)];
  for (int64_t& uses : layer.chosen) uses -= uses / 8;
  if (gain <= kPassesBetweenMoves / 4) return false;  // a copy costs more than what a few tokens would gain
  int32_t& place = layer.place[static_cast<size_t>(coldest)];
  upload_expert(device_, held.gate_up, place, layer.gate_up, hottest);
  upload_expert(device_, held.down, place, layer.down, hottest);
  std::swap(place, layer.place[static_cast<size_t>(hottest)]);
  device_.upload(device_, layer.device_place.data, layer.place.data(), layer.place.size() * sizeof(int32_t));
  return true;
}

void HostExperts::adapt() {
  if (n_on_device_ == 0 || ++n_passes_ % kPassesBetweenMoves != 0) return;
  device_.synchronize(device_);  // the host counts and reads places in its work
  for (Held& held : layers_) n_moved_ += move_one(held) ? 1 : 0;
}

}  // namespace fathom
