// What a plan knows of a model: numbers that follow from its configuration alone, exactly.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "model/config.h"
#include "plan/expression.h"

namespace fathom::plan {

struct ModelFacts {
  std::string name;  // "deepseek-v3", or of a file
  // Sizes of the architecture, parameters by part, bytes of all weights by format: formulas.toml uses them by name.
  Values values;
  // What a choice among inputs brings with it: of_choice["weights"]["q4_0"]["expert_weight_bytes"].
  std::map<std::string, std::map<std::string, Values>> of_choice;
};

// name: for people. Parameters are counted from the shapes that weights have (model/weights.h), bytes from the formats
// that they are stored in (checkpoint/packed_model.h). Nothing of the size of the weights is allocated.
ModelFacts model_facts(const ModelConfig& config, std::string name);

// Shapes that are part of the program: "deepseek-v3", ... UsageError, with all names, for another.
std::vector<std::string> known_models();
ModelConfig known_model(std::string_view name);
bool is_known_model(std::string_view name);

}  // namespace fathom::plan
