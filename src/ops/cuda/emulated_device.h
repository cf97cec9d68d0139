// A device for tests: the kernels of ops/cuda as plain C++ on the CPU (ops/cuda/emulated.h).
#pragma once

#include <memory>

#include "ops/device.h"

namespace fathom {

std::unique_ptr<Device> open_emulated_device();

}  // namespace fathom
