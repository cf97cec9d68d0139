#include "plan/hardware.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/json.h"
#include "plan/embedded.h"
#include "plan/toml.h"

namespace fathom::plan {
namespace {

using nlohmann::json;

constexpr size_t kMostDevices = 1000;
constexpr double kMost = 1e12;  // of any number in the table's units

// Keys of the table, and the names and units that formulas have them in.
struct Key {
  std::string_view key, name;
  double unit;
};
constexpr Key kKeys[] = {{"fp8_tflops", "gpu_fp8_flops", 1e12},
                         {"bf16_tflops", "gpu_bf16_flops", 1e12},
                         {"f32_tflops", "gpu_f32_flops", 1e12},
                         {"int8_tops", "gpu_int8_ops", 1e12},
                         {"memory_gib", "gpu_memory_bytes", 1 << 30},
                         {"memory_gbs", "gpu_memory_bandwidth", 1e9},
                         {"cache_gbs", "gpu_cache_bandwidth", 1e9},
                         {"cache_mb", "gpu_cache_bytes", 1e6},
                         {"core_gbs", "gpu_core_bandwidth", 1e9},
                         {"link_gbs", "gpu_link_bandwidth", 1e9},
                         {"network_gbs", "gpu_network_bandwidth", 1e9},
                         {"per_node", "gpus_a_node", 1},
                         {"cores", "gpu_cores", 1},
                         {"dollars_an_hour", "gpu_price", 1}};

bool is_device_name(std::string_view name) {
  return !name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
  });
}

std::string text_of(const json& table, const char* key, const std::string& fallback) {
  if (!table.contains(key)) return fallback;
  if (!table[key].is_string()) throw Error("{} should be a text", key);
  return printable(table[key].get<std::string>());
}

Hardware device_of(const json& table) {
  Hardware device;
  if (!table.is_object()) throw Error("a device is a table");
  device.name = text_of(table, "name", "");
  if (!is_device_name(device.name)) throw Error("name should be small letters, digits, '-', '.' or '_'");
  const auto named = [&](const std::string& what) { return Error("device {}: {}", device.name, what); };
  device.title = text_of(table, "title", device.name);
  const std::string kind = text_of(table, "kind", "gpu");
  if (kind != "gpu" && kind != "host") throw named("kind is \"gpu\" or \"host\"");
  device.is_host = kind == "host";
  for (const Key& key : kKeys) device.values[std::string(key.name)] = 0;
  device.values["gpus_a_node"] = device.is_host ? 1 : 8;
  for (const auto& [name, value] : table.items()) {
    if (name == "name" || name == "title" || name == "kind") continue;
    if (name == "source") {
      if (!value.is_object()) throw named("source is a table of texts");
      for (const auto& [of, text] : value.items()) {
        if (!text.is_string()) throw named("source is a table of texts");
        device.sources[of] = printable(text.get<std::string>(), 400);
      }
      continue;
    }
    const auto key = std::find_if(std::begin(kKeys), std::end(kKeys),
                                  [&, n = std::string_view(name)](const Key& each) { return each.key == n; });
    if (key == std::end(kKeys)) throw named(fmt::format("'{}' is no key of a device", printable(name, 60)));
    if (!value.is_number()) throw named(fmt::format("{} should be a number", name));
    const double number = value.get<double>();
    if (!(number >= 0) || number > kMost) throw named(fmt::format("{} should be from 0 to {:g}", name, kMost));
    device.values[std::string(key->name)] = number * key->unit;
  }
  const Values& v = device.values;
  if (v.at("gpu_memory_bandwidth") <= 0) throw named("memory_gbs is missing");
  if (v.at("gpu_fp8_flops") + v.at("gpu_bf16_flops") + v.at("gpu_f32_flops") <= 0) throw named("no TFLOP/s are given");
  const double node = v.at("gpus_a_node");
  if (node < 1 || node != std::floor(node)) throw named("per_node should be a whole number from 1");
  device.values["is_host"] = device.is_host ? 1 : 0;
  device.values["is_measured"] = 0;
  return device;
}

std::vector<Hardware> devices_of(const json& document) {
  if (!document.is_object() || document.size() != 1 || !document.contains("device") || !document["device"].is_array())
    throw Error("should hold [[device]] tables and nothing else");
  if (document["device"].empty()) throw Error("holds no [[device]]");
  std::vector<Hardware> devices;
  for (const json& table : document["device"]) {
    if (devices.size() == kMostDevices) throw Error("has more than {} devices", kMostDevices);
    Hardware device = device_of(table);
    for (const Hardware& other : devices) {
      if (other.name == device.name) throw Error("device {} stands twice", device.name);
    }
    devices.push_back(std::move(device));
  }
  return devices;
}

// The last of bench's lines, that of all threads, and from the first one what a thread alone reads.
std::vector<Hardware> machine_of(std::string_view text) {
  json first, last;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    (void)JsonDocument::parse(line, "a line", 4);  // bounds and UTF-8
    last = json::parse(line, nullptr, false);
    if (first.is_null()) first = last;
  }
  if (!last.is_object() || last.value("test", json()) != "machine")
    throw Error("is neither TOML with [[device]] nor what fathom bench --machine --json prints");
  const auto number = [&](const char* key, const json* of = nullptr) {
    const json value = (of != nullptr ? *of : last).value(key, json());
    if (value.is_null()) return 0.0;
    if (!value.is_number()) throw Error("{} should be a number", key);
    return value.get<double>();
  };
  json table{
      {"name", "machine"},
      {"title", fmt::format("this machine, {} threads", number("threads"))},
      {"kind", "host"},
      {"f32_tflops", number("f32_gflops") / 1e3},
      {"int8_tops", std::max(number("i8_gops"), number("i8_dot_gops")) / 1e3},
      {"memory_gbs", number("memory_gbs")},
      {"cache_gbs", number("l3_gbs")},
      {"core_gbs", first.is_object() ? number("memory_gbs", &first) / std::max(number("threads", &first), 1.0) : 0},
      {"cores", number("threads")},
      {"memory_gib", number("memory_gib")}};
  Hardware device = device_of(table);
  device.values["is_measured"] = 1;
  for (const auto& [key, value] : table.items()) {
    if (value.is_number()) device.sources[key] = "fathom bench --machine";
  }
  return {std::move(device)};
}

}  // namespace

std::vector<Hardware> read_devices(std::string_view text, const std::string& where) {
  const size_t first = text.find_first_not_of(" \t\r\n");
  return errors_at(where, [&] {
    if (first != std::string_view::npos && text[first] == '{') return machine_of(text);
    return devices_of(read_toml(text, "TOML"));
  });
}

const std::vector<Hardware>& known_devices() {
  static const std::vector<Hardware> devices = read_devices(embedded_file("hardware.toml"), "hardware.toml");
  return devices;
}

const Hardware& find_device(const std::vector<Hardware>& devices, std::string_view name) {
  std::string names;
  for (const Hardware& device : devices) {
    if (device.name == name) return device;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", device.name);
  }
  throw UsageError("no GPU or host is known as '{}': one of {}, or one of a file given with --hardware",
                   printable(name), names);
}

}  // namespace fathom::plan
