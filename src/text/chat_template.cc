#include "text/chat_template.h"

#include "base/error.h"
#include "text/jinja_evaluator.h"
#include "text/jinja_parser.h"
#include "text/jinja_text.h"

namespace fathom {

std::string render_template(std::string_view source, const nlohmann::ordered_json& variables,
                            const TemplateLimits& limits) {
  constexpr size_t kMaxSource = 4 << 20;
  if (source.size() > kMaxSource) throw Error("the chat template is larger than {} bytes", kMaxSource);
  if (first_invalid_utf8(source) != kNoPosition) throw Error("the chat template is not UTF-8");
  jinja::Block block;
  try {
    block = jinja::parse(source);
  } catch (const Error& error) {
    throw Error("chat template, {}", error.what());
  }
  jinja::Interpreter interpreter(jinja::Budget{limits.steps, limits.bytes}, variables);
  try {
    return interpreter.run(block);
  } catch (const Error& error) {
    throw Error("chat template, line {}: {}", interpreter.line(), error.what());
  }
}

}  // namespace fathom
