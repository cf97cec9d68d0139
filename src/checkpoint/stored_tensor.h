// A tensor as it lies in a file of weights.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "number/tensor.h"

namespace fathom {

struct StoredTensor {
  std::string name;
  std::string dtype;                // as written: "F8_E4M3", "Q8_0"
  std::optional<Format> format;     // absent for types that this engine does not compute with
  std::vector<int64_t> shape;       // row-major; rank 0 and sizes of zero are legal in safetensors
  std::span<const std::byte> data;  // packed; may be misaligned
};

// "[3, 4]"
std::string shape_text(std::span<const int64_t> shape);

}  // namespace fathom
