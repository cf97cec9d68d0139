// Chat templates: messages -> the prompt text, by a small sandboxed interpreter of the Jinja that such templates use.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace fathom {

// What one rendering may cost; far above any honest template's needs.
struct TemplateLimits {
  int64_t steps = 50'000'000;   // a few seconds
  int64_t bytes = 512LL << 20;  // of text and lists ever made
};

// Renders Jinja `source` with the given variables (messages, tools, add_generation_prompt, thinking, bos_token, ...),
// with the settings of transformers: trim_blocks, lstrip_blocks, raise_exception, tojson, strftime_now. Time, depth and
// output are bounded; no attribute reaches outside the values. Errors name the template's line.
std::string render_template(std::string_view source, const nlohmann::ordered_json& variables,
                            const TemplateLimits& limits = {});

}  // namespace fathom
