// The GGUF file, versions 2 and 3: metadata (key -> value), the list of tensors, their data. Files are untrusted: a
// GgufFile that exists has passed every check, its values and tensors lie inside it, and no two of them overlap.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/file.h"
#include "checkpoint/stored_tensor.h"

namespace fathom {

inline constexpr uint32_t kGgufAlignment = 32;               // of tensors, where general.alignment says nothing else
inline constexpr size_t kMaxGgufHeader = size_t{256} << 20;  // metadata and list of tensors: bytes
inline constexpr size_t kMaxGgufName = 63;                   // bytes of a tensor's name
inline constexpr size_t kMaxGgufKey = (1 << 16) - 1;

// Types of values, by their numbers in the file.
enum class GgufType : uint32_t { u8, i8, u16, i16, u32, i32, f32, boolean, text, list, u64, i64, f64 };
std::string_view gguf_type_name(GgufType type);

// Tensor types. Sizes are known of all of them; `format` only of those that this engine computes with.
struct GgmlType {
  uint32_t number;
  std::optional<Format> format;
  std::string_view name;
  int64_t block, block_bytes;
};
const GgmlType* find_ggml_type(uint32_t number);  // null: no such type
const GgmlType& ggml_type(Format format);         // of a float or block format

class GgufFile {
 public:
  // Throws Error naming the file, the key or tensor and the reason.
  explicit GgufFile(const std::filesystem::path& path);
  // The same over bytes that outlive it; `where` begins the messages.
  GgufFile(std::span<const std::byte> bytes, std::string where);

  const std::string& where() const { return where_; }
  // Under their own names, in the order of the list; shapes as elsewhere here: [out, in].
  std::span<const StoredTensor> tensors() const { return tensors_; }
  const StoredTensor* find(std::string_view name) const;  // null when there is none
  MappedFile take_mapping() && { return std::move(file_); }

  // Metadata. Each throws Error where the key is missing, or its value of another type or out of range.
  bool has(std::string_view key) const { return values_.contains(key); }
  int64_t integer(std::string_view key) const;
  double number(std::string_view key) const;  // of an f32: the shortest decimal that is that number
  bool boolean(std::string_view key) const;
  std::string_view text(std::string_view key) const;  // valid UTF-8
  std::vector<int64_t> integers(std::string_view key) const;
  std::vector<std::string_view> texts(std::string_view key) const;

  int64_t integer_or(std::string_view key, int64_t absent) const { return has(key) ? integer(key) : absent; }
  double number_or(std::string_view key, double absent) const { return has(key) ? number(key) : absent; }
  bool boolean_or(std::string_view key, bool absent) const { return has(key) ? boolean(key) : absent; }
  std::string_view text_or(std::string_view key, std::string_view absent) const {
    return has(key) ? text(key) : absent;
  }

 private:
  struct Value {
    GgufType type;  // of a list: of its items
    bool is_list;
    uint64_t n;  // items
    std::span<const std::byte> bytes;
  };
  class Cursor;
  void parse(std::span<const std::byte> bytes);
  Value parse_value(Cursor& cursor, std::string_view key) const;
  StoredTensor parse_tensor(Cursor& cursor, std::vector<uint64_t>& offsets) const;
  void place_tensors(std::span<const std::byte> bytes, size_t header_end, std::span<const uint64_t> offsets);
  const Value& at(std::string_view key) const;
  const Value& at(std::string_view key, bool is_list, std::string_view expected) const;
  Error wrong_type(std::string_view key, std::string_view expected) const;
  int64_t integer_at(const Value& value, uint64_t i, std::string_view key) const;

  MappedFile file_;
  std::string where_;
  std::unordered_map<std::string_view, Value> values_;
  std::vector<StoredTensor> tensors_;
  std::unordered_map<std::string_view, size_t> by_name_;
};

}  // namespace fathom
