#include "checkpoint/gguf_write.h"

#include "base/arithmetic.h"

namespace fathom {

void GgufMetadata::u32(std::string_view key, int64_t x) {
  FATHOM_CHECK(x >= 0 && x <= UINT32_MAX, "{}", key);
  begin(key, GgufType::u32);
  append(static_cast<uint32_t>(x));
}

void GgufMetadata::f32(std::string_view key, double x) {
  begin(key, GgufType::f32);
  append(static_cast<float>(x));
}

void GgufMetadata::boolean(std::string_view key, bool x) {
  begin(key, GgufType::boolean);
  append(static_cast<uint8_t>(x));
}

void GgufMetadata::text(std::string_view key, std::string_view x) {
  begin(key, GgufType::text);
  append_text(x);
}

void GgufMetadata::i32s(std::string_view key, std::span<const int64_t> list) {
  begin_list(key, GgufType::i32, list.size());
  for (const int64_t x : list) append(static_cast<int32_t>(x));
}

void GgufMetadata::append_text(std::string_view text) {
  append(uint64_t{text.size()});
  bytes += text;
}

void GgufMetadata::begin(std::string_view key, GgufType type) {
  append_text(key);
  append(type);
  ++n;
}

void GgufMetadata::begin_list(std::string_view key, GgufType type, size_t size) {
  begin(key, GgufType::list);
  append(type);
  append(uint64_t{size});
}

int64_t GgufTensor::n_numbers() const {
  int64_t n = 1;
  for (const int64_t size : shape) n *= size;
  return n;
}

int64_t GgufTensor::n_bytes() const { return format_bytes(format, n_numbers()); }

void write_gguf_header(AtomicFile& file, const GgufMetadata& metadata, std::span<const GgufTensor> tensors) {
  GgufMetadata header;  // the same way of writing numbers and texts
  constexpr uint32_t kVersion = 3;
  header.bytes = "GGUF";
  header.append(kVersion);
  header.append(uint64_t{tensors.size()});
  header.append(metadata.n);
  header.bytes += metadata.bytes;
  int64_t offset = 0;
  for (const GgufTensor& tensor : tensors) {
    FATHOM_CHECK(tensor.name.size() <= kMaxGgufName, "{}", tensor.name);
    header.append_text(tensor.name);
    header.append(static_cast<uint32_t>(tensor.shape.size()));
    for (size_t d = tensor.shape.size(); d-- > 0;) header.append(static_cast<uint64_t>(tensor.shape[d]));
    header.append(ggml_type(tensor.format).number);
    header.append(static_cast<uint64_t>(offset));
    offset = round_up(offset + tensor.n_bytes(), kGgufAlignment);
  }
  file.write(header.bytes);
  pad_gguf(file, std::ssize(header.bytes));
}

void pad_gguf(AtomicFile& file, int64_t bytes) {
  file.write(std::string(static_cast<size_t>(round_up(bytes, kGgufAlignment) - bytes), '\0'));
}

}  // namespace fathom
