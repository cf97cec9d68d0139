#include "cuda/device_context.h"

namespace fathom {

// Null where there is no GPU: the tests are skipped.
std::unique_ptr<Device> open_test_device() {
  try {
    return open_cuda_device(0);
  } catch (const Error&) {
    return nullptr;
  }
}

}  // namespace fathom
