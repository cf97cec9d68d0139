// config.json and generation_config.json of a Hugging Face directory: read with every key checked, written as
// transformers reads them.
#pragma once

#include <string>

#include "model/config.h"

namespace fathom {

class JsonDocument;

inline constexpr size_t kMaxConfigBytes = size_t{1} << 20;

// The model of a config.json, passed through check_config. Keys that change the model are demanded; a value that asks
// for something this engine does not do is refused by name, never ignored.
ModelConfig parse_config(const JsonDocument& document);

// Adds what generation_config.json knows: the begin token where the config has none, and further end tokens.
void add_generation_config(ModelConfig& config, const JsonDocument& document);

// `stored`: what the matrices are stored in; f8_e4m3 with the blocks that `config` says.
std::string config_json(const ModelConfig& config, Format stored);
std::string generation_config_json(const ModelConfig& config);

}  // namespace fathom
