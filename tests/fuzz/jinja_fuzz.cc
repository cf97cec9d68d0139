// Any bytes as a chat template over a small conversation: rendered or refused with one line, soon, and without harm.
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  static const nlohmann::ordered_json variables = nlohmann::ordered_json::parse(R"({
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "naïve <b> 数据"},
                 {"role": "assistant", "content": null, "tool_calls": [
                   {"type": "function", "function": {"name": "f", "arguments": {"x": 1.5, "y": [1, true, "z"]}}}]},
                 {"role": "tool", "content": "4"}],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "add_generation_prompt": true, "bos_token": "<s>", "eos_token": "</s>", "n": 3})");
  try {
    render_template(std::string_view(reinterpret_cast<const char*>(data), size), variables,
                    {.steps = 200'000, .bytes = 16 << 20});
  } catch (const Error& error) {
    FATHOM_CHECK(std::string_view(error.what()).find('\n') == std::string_view::npos, "{}", error.what());
  }
  return 0;
}
