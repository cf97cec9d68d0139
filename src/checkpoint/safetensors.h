// The safetensors file: 8 bytes little-endian N, N bytes of JSON header, the tensors' data without gaps. Files are
// untrusted: a SafetensorsFile that exists has passed every check, and its tensors lie inside it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/file.h"
#include "checkpoint/stored_tensor.h"

namespace fathom {

inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;  // bytes

class SafetensorsFile {
 public:
  // Throws Error naming the file, the tensor and the reason.
  explicit SafetensorsFile(const std::filesystem::path& path);
  // The same over bytes that outlive it; `where` begins the messages.
  SafetensorsFile(std::span<const std::byte> bytes, std::string where);

  const std::string& where() const { return where_; }
  std::span<const StoredTensor> tensors() const { return tensors_; }  // in the order of their data
  const StoredTensor* find(std::string_view name) const;              // null when there is none
  const std::vector<std::pair<std::string, std::string>>& metadata() const { return metadata_; }

  // The mapping that the tensors lie in (none for bytes of the caller's), to one who keeps the tensors.
  MappedFile take_mapping() && { return std::move(file_); }

 private:
  void parse(std::span<const std::byte> bytes);
  MappedFile file_;
  std::string where_;
  std::vector<StoredTensor> tensors_;
  std::unordered_map<std::string_view, size_t> by_name_;
  std::vector<std::pair<std::string, std::string>> metadata_;
};

// What a header says of a tensor.
struct TensorToStream {
  std::string name;
  Format format;
  std::vector<int64_t> shape;
};
// The beginning of a file, of which it returns the bytes; the data of all tensors follow, in this order. metadata is
// {"format": "pt"}. Two tensors of one name are a bug of the caller.
uint64_t write_safetensors_header(AtomicFile& file, std::span<const TensorToStream> tensors);

struct TensorToWrite {
  std::string name;
  Tensor view;
  Format format;  // the stored type: view's own, or any float format for an f32 view
};

// Writes header and data. Data is put in the order of falling element size, so that every tensor is aligned.
void write_safetensors(AtomicFile& file, std::span<const TensorToWrite> tensors);
void write_safetensors(const std::filesystem::path& path, std::span<const TensorToWrite> tensors);

}  // namespace fathom
