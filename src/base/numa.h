// Memory of machines that have it in several nodes, each near to some of the cores.
#pragma once

#include <filesystem>
#include <span>
#include <vector>

namespace fathom {

// The nodes that have memory, as /sys/devices/system/node lists them; empty where nothing does. `folder` for tests.
std::vector<int> memory_nodes(const std::filesystem::path& folder = "/sys/devices/system/node");

// Deals out the pages that this thread, and threads that it starts from now on, take first, over `nodes` in turn, so
// that every core reads weights with the bandwidth of all nodes. Leaves a policy alone that was set from outside
// (numactl). False: nothing was changed.
bool interleave_memory(std::span<const int> nodes);

}  // namespace fathom
