// What writing a GGUF file takes: its metadata as bytes, the list of tensors, and room between them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/gguf.h"

namespace fathom {

// Keys and values, one behind the other.
class GgufMetadata {
 public:
  void u32(std::string_view key, int64_t x);
  void f32(std::string_view key, double x);
  void boolean(std::string_view key, bool x);
  void text(std::string_view key, std::string_view x);
  template <class Texts>
  void texts(std::string_view key, const Texts& list) {
    begin_list(key, GgufType::text, list.size());
    for (const auto& x : list) append_text(x);
  }
  void i32s(std::string_view key, std::span<const int64_t> list);

  template <class T>
  void append(T x) {
    bytes.append(reinterpret_cast<const char*>(&x), sizeof x);
  }
  void append_text(std::string_view text);

  std::string bytes;
  uint64_t n = 0;

 private:
  void begin(std::string_view key, GgufType type);
  void begin_list(std::string_view key, GgufType type, size_t size);
};

struct GgufTensor {
  std::string name;
  std::vector<int64_t> shape;  // [.., out, in]
  Format format;

  int64_t n_numbers() const;
  int64_t n_bytes() const;
};

// All that stands before the first tensor's data. Each tensor's is followed by pad_gguf.
void write_gguf_header(AtomicFile& file, const GgufMetadata& metadata, std::span<const GgufTensor> tensors);
void pad_gguf(AtomicFile& file, int64_t bytes);

}  // namespace fathom
