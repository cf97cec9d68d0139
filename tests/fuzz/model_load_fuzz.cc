// A whole model from one input: config.json, a zero byte, a safetensors header, a zero byte, the data. Refused with an
// Error, or loaded; never more memory than a small multiple of the input.
#include <algorithm>

#include "base/error.h"
#include "base/terminal.h"
#include "checkpoint/hf_config.h"
#include "checkpoint/hf_directory.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  static ThreadPool pool(1);
  set_quiet(true);
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t config_end = std::min(input.find('\0'), size);
  const std::string_view rest = input.substr(std::min(size, config_end + 1));
  const size_t header_end = std::min(rest.find('\0'), rest.size());
  const uint64_t header_size = header_end;
  std::string file(reinterpret_cast<const char*>(&header_size), sizeof header_size);
  file += rest.substr(0, header_end);
  file += rest.substr(std::min(rest.size(), header_end + 1));
  try {
    const ModelConfig config = parse_config(JsonDocument::parse(input.substr(0, config_end), "config.json"));
    Checkpoint checkpoint;
    checkpoint.where = "input";
    checkpoint.add(SafetensorsFile(std::as_bytes(std::span(file)), "input"));
    const LoadedModel model = load_model(checkpoint, config, pool);
    FATHOM_CHECK(model.parameters.memory.size() <= 128 * size, "{} bytes from {}", model.parameters.memory.size(),
                 size);
  } catch (const Error&) {
  }
  return 0;
}
