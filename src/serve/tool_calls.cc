#include "serve/tool_calls.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "text/json_schema.h"

namespace fathom::serve {
namespace {

using nlohmann::ordered_json;

// Between a name and its arguments.
std::string behind_name(CallFormat format) {
  switch (format) {
    case CallFormat::v3:
      return "\n```json\n";
    case CallFormat::v3_1:
      return "<｜tool▁sep｜>";
    case CallFormat::deepseek_v3_2:
      return "\">\n";
    case CallFormat::none:
      break;
  }
  return "";
}

GrammarRequest arguments_of(const ordered_json& tool) {
  GrammarRequest grammar{.kind = GrammarRequest::Kind::json_object, .param = "tools"};
  const ordered_json& function = tool["function"];
  if (function.contains("parameters") && !function["parameters"].is_null()) {
    grammar.kind = GrammarRequest::Kind::json_schema;
    grammar.schema = function["parameters"];
    if (!grammar.schema.contains("type")) grammar.schema["type"] = "object";
  }
  return grammar;
}

bool is_strict(const ordered_json& tool) {
  return tool["function"].contains("strict") && tool["function"]["strict"] == true;
}

}  // namespace

std::string call_head(CallFormat format, const std::string& name) {
  const std::string begin = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>",
                    rest = name.empty() ? "" : name + behind_name(format);
  switch (format) {
    case CallFormat::v3:
      return begin + "function<｜tool▁sep｜>" + rest;
    case CallFormat::v3_1:
      return begin + rest;
    case CallFormat::deepseek_v3_2:
      return "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"" + rest;
    case CallFormat::none:
      break;
  }
  throw ApiError(400, "tool_choice: the model's chat template has no tool calls", "tool_choice", "unsupported_value");
}

std::string call_end(CallFormat format) {
  if (format == CallFormat::none) return "";
  return format == CallFormat::deepseek_v3_2 ? "</｜DSML｜invoke>" : "<｜tool▁call▁end｜>";
}

GrammarRequest arguments_of(const ordered_json& tools, const std::string& name) {
  for (const ordered_json& tool : tools) {
    if (tool["function"]["name"] == name) return arguments_of(tool);
  }
  return {.kind = GrammarRequest::Kind::json_object, .param = "tools"};
}

std::shared_ptr<const Grammar> call_grammar(CallFormat format, const ordered_json& tools, bool strict_alone) {
  GrammarBuilder builder;
  std::vector<std::pair<std::string, std::optional<uint32_t>>> calls;  // what is in front of arguments, and their rule
  std::optional<uint32_t> any;                                         // of functions that tell nothing of theirs
  for (size_t i = 0; i < tools.size(); ++i) {
    const std::string name = tools[i]["function"]["name"];
    auto& [head, rule] = calls.emplace_back(name + behind_name(format), std::nullopt);
    if (strict_alone && !is_strict(tools[i])) continue;
    const GrammarRequest arguments = arguments_of(tools[i]);
    try {
      if (arguments.kind == GrammarRequest::Kind::json_object) {
        if (!any) any = builder.add(*any_json_object(), "object");
        rule = any;
      } else {
        rule = builder.add(*schema_grammar(arguments.schema), name);
      }
    } catch (const Error& error) {
      throw ApiError(400, fmt::format("tools[{}].function.parameters: {}", i, error.what()), "tools", "invalid_value");
    }
  }
  GrammarBuilder::Piece one = builder.never();
  for (const auto& [head, rule] : calls) {
    GrammarBuilder::Piece call = builder.text(head);
    if (rule) call = builder.then(call, builder.call(*rule));
    one = builder.either(one, call);
  }
  const uint32_t root = builder.add_rule("call");
  builder.define(root, one);
  return builder.finish(root);
}

bool has_strict(const ordered_json& tools) { return std::any_of(tools.begin(), tools.end(), is_strict); }

std::string call_begin(CallFormat format) {
  const std::string head = call_head(format, "");
  const size_t first =
      format == CallFormat::deepseek_v3_2 ? head.find("<｜DSML｜invoke") : head.find("<｜tool▁call▁begin｜>");
  return head.substr(first);
}

}  // namespace fathom::serve
