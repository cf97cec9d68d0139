// Where the weights of a loaded model lie: in files that are mapped, in memory, in huge pages, locked.
#pragma once

#include "checkpoint/packed_model.h"

namespace fathom {

struct Device;

int64_t weight_bytes(const ModelWeights& weights);
// What weights that are not packed yet will take when load_packed_model has packed them. Reads headers alone.
int64_t weight_bytes_when_packed(const Checkpoint& checkpoint, const ModelConfig& config);

// Whether the weights are views of files, which the system may drop from memory and read again.
bool is_mapped(const PackedModel& model);
// Whether the kernel tells what of these files is in memory; it does not tell of files of others.
bool shows_residency(const PackedModel& model);

// Of available memory, what weights and cache may take: some is left for the rest of the process.
uint64_t memory_for_model(uint64_t available_bytes);
bool weights_fit(int64_t weight_bytes, uint64_t available_bytes);

// Has the system read mapped weights into huge pages, where it can.
void prefer_huge_pages(const PackedModel& model);

// Copies mapped weights to memory of the process in huge pages; weights in memory have asked for these already. Error
// where there is not enough of it.
void move_to_huge_pages(PackedModel& model, ThreadPool& pool);

// Error where weights do not fit in the device's memory, or where it is null, in the machine's.
void check_room(int64_t weight_bytes, const Device* device);
// Copies all weights to the device's memory and gives up those of the host. Error where they do not fit.
void move_to_device(PackedModel& model, const Device& device);
// All but routed experts, whose tensors and memory stay as they are.
void move_to_device_without_experts(PackedModel& model, const Device& device);
// What that takes there.
int64_t device_bytes_without_experts(const ModelWeights& weights);

// Keeps all weights in memory, whatever else wants it. Error where the system does not allow it, or they do not fit.
void lock_weights(const PackedModel& model);

}  // namespace fathom
