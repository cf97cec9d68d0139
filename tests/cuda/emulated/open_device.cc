#include "cuda/device_context.h"
#include "ops/cuda/emulated_device.h"

namespace fathom {

std::unique_ptr<Device> open_test_device() { return open_emulated_device(); }

}  // namespace fathom
