// What a plan knows of hardware: numbers of GPUs and of hosts whose CPUs compute, each with its source.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "plan/expression.h"

namespace fathom::plan {

struct Hardware {
  std::string name, title;  // "h800", "NVIDIA H800 SXM"
  bool is_host = false;     // CPUs and their memory
  Values values;            // by the names of formulas.toml, in FLOP/s, bytes, bytes/s, dollars; 0 where there is none
  std::map<std::string, std::string> sources;  // of the table's keys
};

// Those of hardware.toml, in its order.
const std::vector<Hardware>& known_devices();

// Devices of a user's file, to be looked for before the known ones: a table like hardware.toml, or the lines that
// `fathom bench --machine --json` prints, whose last one becomes the host "machine". Error, naming file and device, for
// what is neither and for numbers that no device has.
std::vector<Hardware> read_devices(std::string_view text, const std::string& where);

// UsageError, with all names, for none of them.
const Hardware& find_device(const std::vector<Hardware>& devices, std::string_view name);

}  // namespace fathom::plan
