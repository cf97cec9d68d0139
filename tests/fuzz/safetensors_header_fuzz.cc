// Any bytes as a safetensors file: refused with one line, or its tensors fill what lies behind the header, each once.
#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  // Input that begins like a header gets the length in front of it that a file has there. The memory is of the file's
  // exact size, so that one byte beyond it is seen.
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const bool bare = input.starts_with('{');
  std::vector<std::byte> file(size + (bare ? sizeof(uint64_t) : 0));
  input.copy(reinterpret_cast<char*>(file.data() + file.size() - size), size);
  if (bare) {
    const uint64_t header_size = input.rfind('}') + 1;
    std::memcpy(file.data(), &header_size, sizeof header_size);
  }
  try {
    const SafetensorsFile read(file, "input");
    const std::byte* end = nullptr;  // of the tensor before
    size_t bytes = 0;
    for (const StoredTensor& tensor : read.tensors()) {
      FATHOM_CHECK(read.find(tensor.name) == &tensor);
      FATHOM_CHECK(end == nullptr || tensor.data.data() == end);
      end = tensor.data.data() + tensor.data.size();
      bytes += tensor.data.size();
    }
    uint64_t header_size;
    std::memcpy(&header_size, file.data(), sizeof header_size);
    FATHOM_CHECK(bytes == file.size() - sizeof header_size - header_size);
    FATHOM_CHECK(end == nullptr || end == file.data() + file.size());
  } catch (const Error& error) {
    FATHOM_CHECK(std::string_view(error.what()).find('\n') == std::string_view::npos, "{}", error.what());
  }
  return 0;
}
