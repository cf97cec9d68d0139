// A whole model from one input: refused with one line, or loaded, within a small multiple of the input's own size.
// The input is config.json, an index, two safetensors headers, each ended by a zero byte, and the data. Without an
// index the first header is that of the only file; with one, the two are the first shards that it names, and two bytes
// before the data say how much of it is the first's.
#include <algorithm>
#include <array>
#include <cstring>
#include <random>

#include "base/error.h"
#include "base/json.h"
#include "base/terminal.h"
#include "checkpoint/hf_config.h"
#include "checkpoint/hf_directory.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace fathom {
namespace {

enum Part { kConfig, kIndex, kHeader, kSecondHeader, kData, kParts };
using Parts = std::array<std::string, kParts>;

Parts split(std::string_view input) {
  Parts parts;
  for (int p = kConfig; p < kData; ++p) {
    const size_t end = std::min(input.find('\0'), input.size());
    parts[p] = input.substr(0, end);
    input.remove_prefix(std::min(end + 1, input.size()));
  }
  parts[kData] = input;
  return parts;
}

std::string join(const Parts& parts) {
  std::string input;
  for (int p = kConfig; p < kData; ++p) input.append(parts[p]).push_back('\0');
  return input + parts[kData];
}

// In memory of its exact size, so that one byte beyond it is seen.
using File = std::vector<std::byte>;
File safetensors(std::string_view header, std::string_view data) {
  const uint64_t n = header.size();
  File file(sizeof n + header.size() + data.size());
  std::memcpy(file.data(), &n, sizeof n);
  header.copy(reinterpret_cast<char*>(file.data()) + sizeof n, header.size());
  data.copy(reinterpret_cast<char*>(file.data()) + sizeof n + header.size(), data.size());
  return file;
}

void load(const Parts& parts, size_t input_bytes) {
  static ThreadPool pool(1);
  const ModelConfig config = parse_config(JsonDocument::parse(parts[kConfig], "config.json"));
  std::array<File, 2> files;  // outlive the checkpoint
  Checkpoint checkpoint;
  if (parts[kIndex].empty()) {
    files[0] = safetensors(parts[kHeader], parts[kData]);
    checkpoint.where = "input";
    checkpoint.add(SafetensorsFile(files[0], "input"));
  } else {
    const std::string_view data = parts[kData];
    uint16_t first = 0;
    std::memcpy(&first, data.data(), std::min(sizeof first, data.size()));
    const std::string_view both = data.substr(std::min(sizeof first, data.size()));
    files[0] = safetensors(parts[kHeader], both.substr(0, first));
    files[1] = safetensors(parts[kSecondHeader], both.substr(std::min<size_t>(first, both.size())));
    size_t opened = 0;
    checkpoint = open_shards(JsonDocument::parse(parts[kIndex], "index"), "input", [&](const std::string& name) {
      if (opened == files.size()) throw Error("{}: a third shard", printable(name));
      return SafetensorsFile(files[opened++], printable(name));
    });
  }
  const LoadedModel model = load_model(checkpoint, config, pool);
  const size_t bytes = model.parameters.memory.size();
  FATHOM_CHECK(bytes <= 128 * input_bytes, "{} bytes from {}", bytes, input_bytes);
}

// Makes index, headers and data fit the config, so that a changed config can be loaded: without this, nearly every
// change is refused for a shape that is no longer right.
void fit_to_config(Parts& parts, std::minstd_rand& random) {
  ModelConfig config;
  try {
    config = parse_config(JsonDocument::parse(parts[kConfig], "config.json"));
  } catch (const Error&) {
    return;
  }
  constexpr int64_t kSmall = 1000;
  if (config.router.n_routed_experts > 8 || count_parameters(config).total > kSmall) return;
  const bool sharded = random() % 4 == 0;
  std::array<std::string, 2> headers, data;
  std::string map;
  const auto add = [&](const std::string& name, const char* dtype, size_t n_bytes, std::span<const int64_t> shape) {
    const size_t shard = sharded ? random() % 2 : 0, begin = data[shard].size();
    data[shard].append(n_bytes, 0x3C);  // small and finite in every format
    headers[shard] +=
        fmt::format(R"({}"{}":{{"dtype":"{}","shape":{},"data_offsets":[{},{}]}})", headers[shard].empty() ? '{' : ',',
                    name, dtype, shape_text(shape), begin, data[shard].size());
    map += fmt::format(R"({}"{}":"{}.safetensors")", map.empty() ? "" : ",", name, shard);
  };
  for_each_tensor(weight_shapes(config), config, [&](const NamedTensor& named) {
    const Tensor& view = named.view;
    const auto size = static_cast<size_t>(view.size());
    const std::span shape(view.shape, static_cast<size_t>(view.rank));
    switch (random() % 4) {
      case 0:
        return add(named.name, "F32", 4 * size, shape);
      case 1:
        return add(named.name, "F16", 2 * size, shape);
      case 2:
        if (config.weight_block_rows > 0 && (view.rank == 2 || random() % 64 == 0)) {
          const int64_t blocks[] = {(view.shape[0] - 1) / config.weight_block_rows + 1,
                                    (view.shape[1] - 1) / config.weight_block_cols + 1};
          add(named.name + "_scale_inv", "F32", static_cast<size_t>(4 * blocks[0] * blocks[1]), blocks);
          return add(named.name, "F8_E4M3", size, shape);
        }
        [[fallthrough]];
      default:
        return add(named.name, "BF16", 2 * size, shape);
    }
  });
  parts[kIndex] = sharded ? "{\"weight_map\":{" + map + "}}" : "";
  parts[kHeader] = headers[0] + "}";
  parts[kSecondHeader] = sharded ? headers[1] + "}" : "";
  parts[kData] = data[0] + data[1];
  const auto first = static_cast<uint16_t>(data[0].size());
  if (sharded) parts[kData].insert(0, reinterpret_cast<const char*>(&first), sizeof first);
}

}  // namespace
}  // namespace fathom

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  fathom::set_quiet(true);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  try {
    load(split({reinterpret_cast<const char*>(data), size}), size);
  } catch (const Error& error) {
    FATHOM_CHECK(std::string_view(error.what()).find('\n') == std::string_view::npos, "{}", error.what());
  }
  return 0;
}

// Changes one part, mostly, and leaves the others where they are.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  using namespace fathom;
  std::minstd_rand random(seed);
  random.discard(1);
  Parts parts = split({reinterpret_cast<const char*>(data), size});
  std::string& part = parts[random() % kParts];
  if (size >= max_size || random() % 16 == 0) return LLVMFuzzerMutate(data, size, max_size);
  const size_t old_size = part.size();
  part.resize(old_size + max_size - size);
  part.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(part.data()), old_size, part.size()));
  if (&part == &parts[kConfig] && random() % 2 == 0) fit_to_config(parts, random);
  const std::string input = join(parts);
  const size_t n = std::min(input.size(), max_size);
  input.copy(reinterpret_cast<char*>(data), n);
  return n;
}
