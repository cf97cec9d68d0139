#include "infer/device_placement.h"

#include <algorithm>

#include "base/terminal.h"
#include "checkpoint/weight_memory.h"
#include "ops/device.h"

namespace fathom {

std::unique_ptr<HostExperts> place_on_device(PackedModel& model, const Device& device, int64_t budget, int n_threads) {
  const int64_t one_of_each = HostExperts::bytes_of_one(model.weights);
  const int64_t others = device_bytes_without_experts(model.weights);
  const int64_t experts = model.config.router.n_routed_experts;
  if (one_of_each == 0 || others + experts * one_of_each <= budget) {
    move_to_device(model, device);
    return nullptr;
  }
  if (others > budget) {
    throw Error(
        "all weights but the routed experts are {}, and {} of {} are for weights: take a smaller format (fathom "
        "convert)",
        human_bytes(static_cast<double>(others)), human_bytes(static_cast<double>(std::max<int64_t>(budget, 0))),
        device.name);
  }
  auto host = std::make_unique<HostExperts>(model.weights, device, (budget - others) / one_of_each, n_threads);
  move_to_device_without_experts(model, device);
  return host;
}

}  // namespace fathom
