// Any bytes as a GGUF file: refused with one line; or its tensors lie inside it, none in another's place, and what it
// says of a model, a tokenizer and an importance matrix is refused with one line or loaded within a small multiple of
// the input's own size.
#include <algorithm>

#include "base/error.h"
#include "base/terminal.h"
#include "checkpoint/gguf_model.h"
#include "checkpoint/imatrix.h"
#include "text/tokenizer.h"

namespace fathom {
namespace {

// What work() throws must be one line.
template <class Work>
void refused_or_done(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    FATHOM_CHECK(std::string_view(error.what()).find('\n') == std::string_view::npos, "{}", error.what());
  }
}

void check_places(const GgufFile& file, std::span<const std::byte> bytes) {
  std::vector<std::span<const std::byte>> places;
  for (const StoredTensor& tensor : file.tensors()) {
    FATHOM_CHECK(file.find(tensor.name) == &tensor);
    FATHOM_CHECK(!tensor.data.empty());
    places.push_back(tensor.data);
  }
  std::sort(places.begin(), places.end(), [](auto a, auto b) { return a.data() < b.data(); });
  const std::byte* end = bytes.data();
  for (const auto place : places) {
    FATHOM_CHECK(place.data() >= end);
    end = place.data() + place.size();
  }
  FATHOM_CHECK(end <= bytes.data() + bytes.size());
}

void load(std::span<const std::byte> bytes) {
  static ThreadPool pool(1);
  const ModelConfig config = parse_gguf_config(GgufFile(bytes, "input"));
  Checkpoint checkpoint;
  checkpoint.where = "input";
  checkpoint.add(gguf_weights(GgufFile(bytes, "input")));
  checkpoint.tie("lm_head.weight", "model.embed_tokens.weight");
  const LoadedModel model = load_model(checkpoint, config, pool);
  FATHOM_CHECK(model.parameters.memory.size() <= 128 * bytes.size(), "{}", model.parameters.memory.size());
}

void read_importance(const GgufFile& file, size_t bytes) {
  size_t numbers = 0;
  for (const auto& [name, entry] : parse_imatrix(file).entries) {
    FATHOM_CHECK(entry.matrices() * entry.cols == std::ssize(entry.sums), "{}", name);
    for (int64_t m = 0; m < entry.matrices(); ++m) (void)entry.of(m);
    numbers += entry.sums.size() + entry.counts.size();
  }
  FATHOM_CHECK(numbers * sizeof(float) <= bytes);
}

void read_tokenizer(const GgufFile& file) {
  const auto found = find_gguf_tokenizer(file);
  if (!found) return;
  const Vocabulary vocabulary{std::string(found->pretokenizer),
                              {found->tokens.begin(), found->tokens.end()},
                              found->types,
                              {found->merges.begin(), found->merges.end()},
                              found->bos,
                              found->eos,
                              found->add_bos,
                              std::string(found->chat_template)};
  const Tokenizer tokenizer = Tokenizer::from_vocabulary(vocabulary, "input");
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) (void)tokenizer.token_bytes(id);
}

}  // namespace
}  // namespace fathom

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  fathom::set_quiet(true);
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  // In memory of its exact size, so that one byte beyond it is seen.
  const std::vector<std::byte> bytes(reinterpret_cast<const std::byte*>(data),
                                     reinterpret_cast<const std::byte*>(data) + size);
  refused_or_done([&] {
    const GgufFile file(bytes, "input");
    check_places(file, bytes);
    refused_or_done([&] { load(bytes); });
    refused_or_done([&] { read_tokenizer(file); });
    refused_or_done([&] { read_importance(file, size); });
  });
  return 0;
}
