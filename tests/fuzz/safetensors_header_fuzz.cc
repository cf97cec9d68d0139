// Any bytes as a safetensors file: refused with an Error, or every tensor lies inside them.
#include <algorithm>

#include "base/error.h"
#include "checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  // Input that begins like a header gets the length in front of it that a file has there.
  if (size == 0) return 0;
  std::string file(reinterpret_cast<const char*>(data), size);
  if (data[0] == '{') {
    const uint64_t header_size = std::min(size, file.rfind('}') + 1);
    file.insert(0, reinterpret_cast<const char*>(&header_size), sizeof header_size);
  }
  try {
    const SafetensorsFile read(std::as_bytes(std::span(file)), "input");
    size_t bytes = 0;
    for (const StoredTensor& tensor : read.tensors()) {
      FATHOM_CHECK(read.find(tensor.name) == &tensor);
      bytes += tensor.data.size();
      FATHOM_CHECK(shape_text(tensor.shape).size() >= 2);
      FATHOM_CHECK(tensor.data.empty() ||
                   std::as_bytes(std::span(file)).data() + file.size() >= tensor.data.data() + tensor.data.size());
    }
    FATHOM_CHECK(bytes <= file.size());
  } catch (const Error&) {
  }
  return 0;
}
