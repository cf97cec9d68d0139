#include "train/device_state.h"

namespace fathom {
namespace {

Parameters copy_to_device(const Device& device, const ModelConfig& config, const Parameters& from) {
  Parameters to = allocate_parameters(config, /*with_bias=*/true, {}, &device);
  FATHOM_CHECK(to.n_total == from.n_total);
  device.upload(device, to.memory.data(), from.memory.data(), from.memory.size());
  return to;
}

Moment copy_to_device(const Device& device, const Moment& from) {
  Moment to{device.allocate(from.memory.size()), from.values};
  to.values.data = to.memory.data();
  device.upload(device, to.memory.data(), from.memory.data(), from.memory.size());
  return to;
}

void fetch(const Device& device, const Buffer& to, const Buffer& from) {
  FATHOM_CHECK(to.size() == from.size());
  if (to.size() > 0) device.download(device, to.data(), from.data(), to.size());
}

}  // namespace

TrainedState copy_to_device(const Device& device, const TrainedState& state) {
  TrainedState to;
  to.config = state.config;
  to.parameters = copy_to_device(device, state.config, state.parameters);
  to.first_moment = copy_to_device(device, state.first_moment);
  to.second_moment = copy_to_device(device, state.second_moment);
  if (state.average.n_total > 0) to.average = copy_to_device(device, state.config, state.average);
  return to;
}

void copy_from_device(const Device& device, TrainedState& state, const TrainedState& on_device) {
  fetch(device, state.parameters.memory, on_device.parameters.memory);
  fetch(device, state.first_moment.memory, on_device.first_moment.memory);
  fetch(device, state.second_moment.memory, on_device.second_moment.memory);
  fetch(device, state.average.memory, on_device.average.memory);
}

void upload_biases(const Device& device, const TrainedState& on_device, const TrainedState& state) {
  const auto begin = static_cast<size_t>(state.parameters.n_trained);
  const std::span<float> from = state.parameters.all().subspan(begin), to = on_device.parameters.all().subspan(begin);
  if (!from.empty()) device.upload(device, to.data(), from.data(), from.size_bytes());
}

}  // namespace fathom
