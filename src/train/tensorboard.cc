#include "train/tensorboard.h"

#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <optional>

#include "base/file.h"

namespace fathom {
namespace {

// Numbers of the fields, and of the one enumerator.
enum Event : uint32_t { kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7 };
enum Summary : uint32_t { kValue = 1 };
enum SummaryValue : uint32_t { kTag = 1, kSimpleValue = 2 };
enum SessionLog : uint32_t { kStatus = 1 };
constexpr uint64_t kSessionStart = 1;

template <class Number>
void append_little_endian(std::string& out, Number number) {
  static_assert(std::endian::native == std::endian::little);
  char bytes[sizeof(Number)];
  std::memcpy(bytes, &number, sizeof(Number));
  out.append(bytes, sizeof(Number));
}

void append_varint(std::string& out, uint64_t value) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

// Protocol Buffers' wire types.
void append_integer(std::string& out, uint32_t field, uint64_t value) {
  append_varint(out, field << 3 | 0);
  append_varint(out, value);
}
void append_double(std::string& out, uint32_t field, double value) {
  append_varint(out, field << 3 | 1);
  append_little_endian(out, value);
}
void append_bytes(std::string& out, uint32_t field, std::string_view bytes) {
  append_varint(out, field << 3 | 2);
  append_varint(out, bytes.size());
  out.append(bytes);
}
void append_float(std::string& out, uint32_t field, float value) {
  append_varint(out, field << 3 | 5);
  append_little_endian(out, value);
}

double unix_time_s() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string event_at(int64_t step) {
  std::string event;
  append_double(event, kWallTime, unix_time_s());
  append_integer(event, kStep, static_cast<uint64_t>(step));
  return event;
}

uint32_t masked_crc(std::string_view bytes) { return std::rotr(crc32c(bytes), 15) + 0xa282ead8U; }

void append_scalar(std::string& summary, std::string_view tag, std::optional<double> value) {
  if (!value) return;
  std::string scalar;
  append_bytes(scalar, kTag, tag);
  append_float(scalar, kSimpleValue, static_cast<float>(*value));
  append_bytes(summary, kValue, scalar);
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  static constexpr std::array<uint32_t, 256> kTable = [] {
    std::array<uint32_t, 256> table{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t crc = i;
      for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ ((crc & 1) != 0 ? 0x82f63b78U : 0);
      table[i] = crc;
    }
    return table;
  }();
  uint32_t crc = ~0U;
  for (const char byte : bytes) crc = crc >> 8 ^ kTable[(crc ^ static_cast<uint8_t>(byte)) & 0xff];
  return ~crc;
}

TensorboardLog::TensorboardLog(const std::filesystem::path& directory, int64_t first_step) {
  make_directory(directory);
  char host[256] = "host";
  gethostname(host, sizeof(host) - 1);
  path_ =
      directory / fmt::format("events.out.tfevents.{}.{}.{}.0", static_cast<int64_t>(unix_time_s()), host, getpid());
  file_ = std::fopen(path_.c_str(), "wbe");
  if (file_ == nullptr) throw Error("{}: cannot write: {}", printable(path_.native()), std::strerror(errno));
  std::string version = event_at(0);
  append_bytes(version, kFileVersion, "brain.Event:2");
  append(version);
  std::string session, start = event_at(first_step);
  append_integer(session, kStatus, kSessionStart);
  append_bytes(start, kSessionLog, session);
  append(start);
}

TensorboardLog::~TensorboardLog() {
  if (file_ != nullptr) std::fclose(file_);
}

void TensorboardLog::write(const StepMetrics& m) {
  std::string summary;
  append_scalar(summary, "train/loss", m.loss);
  append_scalar(summary, "train/mtp_loss", m.mtp_loss);
  append_scalar(summary, "train/divergence", m.divergence);
  append_scalar(summary, "train/indexer_loss", m.indexer_loss);
  append_scalar(summary, "train/indexer_recall", m.indexer_recall);
  append_scalar(summary, "train/lr", m.lr);
  append_scalar(summary, "train/grad_norm", m.grad_norm);
  append_scalar(summary, "train/tokens", static_cast<double>(m.tokens));
  append_scalar(summary, "train/skipped", m.skipped ? 1 : 0);
  append_scalar(summary, "speed/tokens_per_s", m.tokens_per_s);
  append_scalar(summary, "speed/mfu", m.mfu);
  append_scalar(summary, "balance/max_violation", m.max_violation);
  for (size_t l = 0; l < m.layer_violations.size(); ++l) {
    append_scalar(summary, fmt::format("balance/max_violation_of_moe_layer_{}", l), m.layer_violations[l]);
  }
  for (size_t l = 0; l < m.bias_ranges.size(); ++l) {
    append_scalar(summary, fmt::format("balance/least_bias_of_moe_layer_{}", l), m.bias_ranges[l][0]);
    append_scalar(summary, fmt::format("balance/greatest_bias_of_moe_layer_{}", l), m.bias_ranges[l][1]);
  }
  append_scalar(summary, "val/loss", m.val_loss);
  append_scalar(summary, "val/loss_average", m.val_loss_average);
  if (m.val_loss) append_scalar(summary, "val/max_violation", m.val_max_violation);
  for (size_t l = 0; l < m.val_layer_violations.size(); ++l) {
    append_scalar(summary, fmt::format("val/max_violation_of_moe_layer_{}", l), m.val_layer_violations[l]);
  }
  std::string event = event_at(m.step);
  append_bytes(event, kSummary, summary);
  append(event);
}

void TensorboardLog::append(const std::string& event) {
  std::string record;
  append_little_endian(record, static_cast<uint64_t>(event.size()));
  append_little_endian(record, masked_crc(record));
  record += event;
  append_little_endian(record, masked_crc(event));
  if (std::fwrite(record.data(), 1, record.size(), file_) != record.size() || std::fflush(file_) != 0) {
    throw Error("{}: cannot write: {}", printable(path_.native()), std::strerror(errno));
  }
}

}  // namespace fathom
