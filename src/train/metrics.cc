#include "train/metrics.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/json.h"

namespace fathom {
namespace {

constexpr size_t kMaxLogBytes = size_t{4} << 30;

using Json = nlohmann::ordered_json;

template <class T>
T number(simdjson::dom::element object, const char* key) {
  T value = 0;
  if (object[key].get(value) != simdjson::SUCCESS) return 0;
  return value;
}

std::optional<double> optional_number(simdjson::dom::element object, const char* key) {
  double value = 0;
  if (object[key].get(value) != simdjson::SUCCESS) return std::nullopt;
  return value;
}

// What is told of every run; other numbers are its source's.
constexpr std::string_view kOwnNames[] = {"step",
                                          "steps",
                                          "loss",
                                          "mtp_loss",
                                          "indexer_loss",
                                          "indexer_recall",
                                          "lr",
                                          "grad_norm",
                                          "tokens",
                                          "tokens_per_s",
                                          "seconds",
                                          "mfu",
                                          "max_violation",
                                          "val_loss",
                                          "val_loss_average",
                                          "val_max_violation"};

std::vector<std::pair<std::string, double>> other_numbers(simdjson::dom::element root) {
  std::vector<std::pair<std::string, double>> others;
  simdjson::dom::object object;
  if (root.get(object) != simdjson::SUCCESS) return others;
  for (const auto [name, value] : object) {
    double number = 0;
    if (std::ranges::find(kOwnNames, name) != std::end(kOwnNames)) continue;
    if (value.get(number) == simdjson::SUCCESS) others.emplace_back(name, number);
  }
  return others;
}

template <class T>
std::vector<T> numbers(const simdjson::simdjson_result<simdjson::dom::element>& list) {
  std::vector<T> values;
  simdjson::dom::array array;
  if (list.get(array) != simdjson::SUCCESS) return values;
  for (const simdjson::dom::element element : array) {
    T value = 0;
    if (element.get(value) == simdjson::SUCCESS) values.push_back(value);
  }
  return values;
}

// Nothing when the line is no whole object with a step: the end of a file that was cut off.
std::optional<StepMetrics> parse_line(std::string_view line) {
  try {
    const JsonDocument document = JsonDocument::parse(line, "log");
    const simdjson::dom::element root = document.root();
    StepMetrics m;
    if (root["step"].get(m.step) != simdjson::SUCCESS) return std::nullopt;
    m.steps = number<int64_t>(root, "steps");
    const double nan = std::numeric_limits<double>::quiet_NaN();  // null in the file
    m.loss = optional_number(root, "loss").value_or(nan);
    m.mtp_loss = optional_number(root, "mtp_loss");
    m.divergence = optional_number(root, "divergence");
    m.indexer_loss = optional_number(root, "indexer_loss");
    m.indexer_recall = optional_number(root, "indexer_recall");
    m.lr = number<double>(root, "lr");
    m.grad_norm = optional_number(root, "grad_norm").value_or(nan);
    m.tokens = number<int64_t>(root, "tokens");
    m.tokens_per_s = number<double>(root, "tokens_per_s");
    m.seconds = number<double>(root, "seconds");
    m.mfu = optional_number(root, "mfu");
    m.max_violation = number<double>(root, "max_violation");
    m.val_loss = optional_number(root, "val_loss");
    m.val_loss_average = optional_number(root, "val_loss_average");
    m.val_max_violation = number<double>(root, "val_max_violation");
    m.val_layer_violations = numbers<double>(root["val_layer_max_violation"]);
    m.layer_violations = numbers<double>(root["layer_max_violation"]);
    m.of_source = other_numbers(root);
    std::string_view skipped, sample;
    if (root["skipped"].get(skipped) == simdjson::SUCCESS) m.skipped = std::string(skipped);
    if (root["sample"].get(sample) == simdjson::SUCCESS) m.sample = std::string(sample);
    simdjson::dom::array layers;
    if (root["expert_load"].get(layers) == simdjson::SUCCESS) {
      for (const auto layer : layers) {
        auto& row = m.expert_load.emplace_back();
        for (const auto count : layer.get_array()) row.push_back(count.get_int64().value());
      }
    }
    if (root["bias_range"].get(layers) == simdjson::SUCCESS) {
      for (const auto layer : layers) {
        const std::vector<double> ends = numbers<double>(simdjson::dom::element(layer));
        if (ends.size() == 2) m.bias_ranges.push_back({static_cast<float>(ends[0]), static_cast<float>(ends[1])});
      }
    }
    return m;
  } catch (const std::exception&) {
    return std::nullopt;
  }
}

template <class Visit>
void for_each_line(std::string_view content, const Visit& visit) {
  while (!content.empty()) {
    const size_t end = std::min(content.find('\n'), content.size());
    visit(content.substr(0, end));
    content.remove_prefix(std::min(end + 1, content.size()));
  }
}

}  // namespace

std::string to_json_line(const StepMetrics& m) {
  Json object{{"step", m.step}, {"steps", m.steps}, {"loss", m.loss}};
  if (m.mtp_loss) object["mtp_loss"] = *m.mtp_loss;
  if (m.divergence) object["divergence"] = *m.divergence;
  if (m.indexer_loss) object["indexer_loss"] = *m.indexer_loss;
  if (m.indexer_recall) object["indexer_recall"] = *m.indexer_recall;
  object["lr"] = m.lr;
  object["grad_norm"] = m.grad_norm;
  object["tokens"] = m.tokens;
  object["tokens_per_s"] = std::round(m.tokens_per_s * 10) / 10;
  object["seconds"] = std::round(m.seconds * 1e3) / 1e3;
  if (m.mfu) object["mfu"] = std::round(*m.mfu * 1e4) / 1e4;
  object["max_violation"] = m.max_violation;
  if (m.skipped) object["skipped"] = *m.skipped;
  if (m.val_loss) {
    object["val_loss"] = *m.val_loss;
    if (m.val_loss_average) object["val_loss_average"] = *m.val_loss_average;
    object["val_max_violation"] = m.val_max_violation;
    if (!m.val_layer_violations.empty()) object["val_layer_max_violation"] = m.val_layer_violations;
  }
  if (!m.expert_load.empty()) {
    object["expert_load"] = m.expert_load;
    object["layer_max_violation"] = m.layer_violations;
  }
  if (!m.bias_ranges.empty()) object["bias_range"] = m.bias_ranges;
  for (const auto& [name, value] : m.of_source) object[name] = value;
  if (m.sample) object["sample"] = *m.sample;
  return object.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::vector<StepMetrics> read_metrics(const std::filesystem::path& path) {
  std::vector<StepMetrics> all;
  for_each_line(read_file(path, kMaxLogBytes), [&](std::string_view line) {
    if (auto metrics = parse_line(line)) all.push_back(std::move(*metrics));
  });
  return all;
}

MetricsLog::MetricsLog(const std::filesystem::path& path, int64_t last_step) : path_(path) {
  if (path.has_parent_path()) make_directory(path.parent_path());
  std::string kept;
  if (last_step > 0 && std::filesystem::exists(path)) {
    const std::string content = read_file(path, kMaxLogBytes);
    for_each_line(content, [&](std::string_view line) {
      const auto metrics = parse_line(line);
      if (!metrics || metrics->step > last_step) return;
      kept.append(line).push_back('\n');
      seconds_before_ = std::max(seconds_before_, metrics->seconds);
    });
  }
  // Beside the checkpoint protocol's care a log is no loss: a plain file, but a pipe or device is written to as it is.
  if (!std::filesystem::exists(path) || std::filesystem::is_regular_file(path)) write_file_atomically(path, kept);
  fd_ = open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
  if (fd_ < 0) throw Error("{}: cannot write the log: {}", printable(path.native()), std::strerror(errno));
}

MetricsLog::~MetricsLog() { close(fd_); }

void MetricsLog::write(const StepMetrics& metrics) { write_lines(to_json_line(metrics)); }

void MetricsLog::write_lines(std::string_view lines) {
  const std::string line = (broken_line_ ? "\n" : "") + std::string(lines);
  for (std::string_view left = line; !left.empty();) {
    const ssize_t n = ::write(fd_, left.data(), left.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) {
      broken_line_ |= left.size() < line.size();
      throw Error("{}: cannot write the log: {}", printable(path_.native()), std::strerror(errno));
    }
    left.remove_prefix(static_cast<size_t>(n));
  }
  broken_line_ = false;
}

void MetricsLog::sync() {
  while (fdatasync(fd_) != 0) {
    if (errno == EINTR) continue;
    if (errno == EINVAL || errno == EROFS) return;  // a pipe, a device
    throw Error("{}: cannot sync the log: {}", printable(path_.native()), std::strerror(errno));
  }
}

}  // namespace fathom
