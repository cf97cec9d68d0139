#include "checkpoint/stored_tensor.h"

#include <fmt/format.h>

namespace fathom {

std::string shape_text(std::span<const int64_t> shape) {
  constexpr size_t kShown = 8;  // files may claim any rank
  if (shape.size() <= kShown) return fmt::format("[{}]", fmt::join(shape, ", "));
  return fmt::format("[{} and {} more]", fmt::join(shape.first(kShown), ", "), shape.size() - kShown);
}

}  // namespace fathom
