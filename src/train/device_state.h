// The state of a run where a device computes: weights, moments and average lie in its memory, and the host has a copy
// that is made anew when it is saved. The host alone changes correction biases.
#pragma once

#include "ops/device.h"
#include "train/saved_state.h"

namespace fathom {

// Weights, moments and average of `state`, in the device's memory; of its numbers the config alone.
TrainedState copy_to_device(const Device& device, const TrainedState& state);
// And back into `state`, which waits for the device.
void copy_from_device(const Device& device, TrainedState& state, const TrainedState& on_device);
// What the host has made of the correction biases.
void upload_biases(const Device& device, const TrainedState& on_device, const TrainedState& state);

}  // namespace fathom
