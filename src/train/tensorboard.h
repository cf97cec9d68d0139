// Event files that TensorBoard shows: records of TFRecord, each an Event message of tensorflow/core/util/event.proto,
// of which the few fields that scalars need are written here.
#pragma once

#include <cstdio>
#include <filesystem>
#include <string>
#include <string_view>

#include "train/metrics.h"

namespace fathom {

// A file of its own in `directory` for every process. After a resume TensorBoard drops what earlier files say of the
// steps from first_step on. Error when it cannot be written.
class TensorboardLog {
 public:
  TensorboardLog(const std::filesystem::path& directory, int64_t first_step);
  ~TensorboardLog();
  TensorboardLog(const TensorboardLog&) = delete;
  TensorboardLog& operator=(const TensorboardLog&) = delete;
  void write(const StepMetrics& metrics);

 private:
  void append(const std::string& event);
  std::filesystem::path path_;
  std::FILE* file_ = nullptr;
};

// CRC-32C (Castagnoli), which TFRecord guards lengths and contents with.
uint32_t crc32c(std::string_view bytes);

}  // namespace fathom
