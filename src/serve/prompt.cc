#include "serve/prompt.h"

#include "base/error.h"
#include "serve/tool_calls.h"
#include "text/gbnf.h"
#include "text/json_schema.h"
#include "text/regex_grammar.h"

namespace fathom::serve {
namespace {

using nlohmann::ordered_json;

std::shared_ptr<Constraint> constraint_by(std::shared_ptr<const Grammar> grammar,
                                          const std::shared_ptr<const TokenTrie>& trie, std::string behind = {},
                                          std::string begun = {}) {
  auto masks = std::make_shared<TokenMasks>(grammar, trie);
  return std::make_shared<Constraint>(
      Constraint{std::move(grammar), std::move(masks), std::move(behind), std::move(begun)});
}

// The answer's beginning is a part of what the grammar speaks of.
void check_begun(const Constraint& constraint, const std::string& begun, const std::string& param) {
  const std::string last = "the last message, which begins the answer, ";
  GrammarMatcher matcher(constraint.grammar);
  if (!matcher.accept(begun)) throw ApiError(400, param + ": " + last + "begins nothing of this form", "messages");
  if (matcher.must_end()) throw ApiError(400, param + ": " + last + "is all of it: nothing can follow", "messages");
}

// Nothing where the answer cannot think: where it is a grammar's from its first token on.
std::optional<ThinkingBudget> budget_of(const Tokenizer& tokenizer, const ChatRequest& request,
                                        const ChatInput& input) {
  const bool may_think = !input.constraint || !input.constraint->behind.empty();
  if (!request.thinking_budget || !may_think) return std::nullopt;
  ThinkingBudget budget{
      .tokens = *request.thinking_budget, .end_ids = tokenizer.encode(kEndThink), .ends = {std::string(kEndThink)}};
  if (!input.format.begins_in_reasoning) budget.begin = kThink;
  // A call within thoughts is their end too.
  if (input.format.calls != CallFormat::none) budget.ends.emplace_back(calls_mark(input.format.calls));
  if (input.constraint && input.constraint->returns) budget.ends.push_back(input.constraint->behind);
  return budget;
}

}  // namespace

std::string default_template(const Tokenizer& tokenizer, std::string_view model_type) {
  const std::string bos = tokenizer.adds_bos() && tokenizer.bos_id() >= 0 ? "{{ bos_token }}" : "";
  if (tokenizer.id_of("<｜User｜>") < 0) {
    return bos +
           "{% for message in messages %}{% if message.role != 'assistant' and not loop.first %}{{ '\n' }}{% endif %}"
           "{{ message.content }}{% endfor %}";
  }
  if (model_type == "deepseek_v32") return std::string(kDeepseekV32Encoding);
  return bos +
         "{% for message in messages %}{% if message.role == 'user' %}<｜User｜>{{ message.content }}"
         "{% elif message.role == 'assistant' %}<｜Assistant｜>{{ message.content }}{{ eos_token }}"
         "{% else %}{{ message.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<｜Assistant｜>{% endif "
         "%}";
}

std::shared_ptr<const Constraint> constraint_of(const PromptSource& source, const GrammarRequest& request,
                                                std::string behind, const std::string& begun) {
  using Kind = GrammarRequest::Kind;
  if (request.kind == Kind::none) return nullptr;
  try {
    std::shared_ptr<const Grammar> grammar;
    if (request.kind == Kind::json_object) grammar = any_json_object();
    if (request.kind == Kind::json_schema) grammar = schema_grammar(request.schema);
    if (request.kind == Kind::gbnf) grammar = parse_gbnf(request.source);
    if (request.kind == Kind::regex) grammar = regex_grammar(request.source);
    auto constraint = constraint_by(grammar, source.trie, std::move(behind), begun);
    if (!begun.empty()) check_begun(*constraint, begun, request.param);
    return constraint;
  } catch (const Error& error) {
    throw ApiError(400, fmt::format("{}: {}", request.param, error.what()), request.param, "invalid_value");
  }
}

std::shared_ptr<const TokenTrie> call_trie(const Tokenizer& tokenizer, std::string_view chat_template) {
  const int32_t mark = tokenizer.id_of("<｜tool▁sep｜>");
  if (mark < 0 || answer_format_of(chat_template, "").calls != CallFormat::v3_1) return nullptr;
  return std::make_shared<TokenTrie>(tokenizer, std::span<const int32_t>(), std::span(&mark, 1));
}

ChatInput chat_input(const PromptSource& source, const ChatRequest& request) {
  ChatOptions chat = source.chat;
  const bool uses_tools = !request.tools.is_null() && request.tool_choice != ToolChoice::none;
  if (uses_tools) chat.tools = request.tools;
  ordered_json messages = request.messages;
  std::optional<bool> thinking = request.thinking;
  bool in_reasoning = false;
  std::string begun_content;
  if (request.continues_last) {
    chat.begun_answer = messages.back();
    messages.erase(messages.size() - 1);
    if (messages.empty())
      throw ApiError(400, "messages: there is nothing that the last one answers", "messages", "invalid_value");
    const auto says = [&](const char* name) {
      return chat.begun_answer.contains(name) && chat.begun_answer[name].is_string() && chat.begun_answer[name] != "";
    };
    if (says("reasoning_content")) thinking = true;
    in_reasoning = says("reasoning_content") && !says("content");
    if (says("content")) begun_content = chat.begun_answer["content"];
  }
  if (thinking) chat.kwargs["thinking"] = chat.kwargs["enable_thinking"] = *thinking;  // templates know either name
  for (const auto& [name, value] : request.kwargs.items()) chat.kwargs[name] = value;
  const bool forced =
      uses_tools && (request.tool_choice == ToolChoice::required || request.tool_choice == ToolChoice::named);
  if (forced && request.continues_last)
    throw ApiError(400, "tool_choice: goes with no answer that has begun", "tool_choice", "invalid_value");
  ChatInput input;
  try {
    ChatPrompt prompt = encode_chat(source.tokenizer, source.chat_template, messages, chat);
    input.format = answer_format_of(source.chat_template, prompt.own_end);
    input.format.begins_in_reasoning |= in_reasoning;
    if (!uses_tools) input.format.calls = CallFormat::none;
    if (forced) {
      // A call that must come leaves no choice of what to think.
      if (input.format.begins_in_reasoning) input.begun = kEndThink;
      input.begun += call_head(input.format.calls, request.tool);
      const std::vector<int32_t> head = source.tokenizer.encode(input.begun);
      prompt.ids.insert(prompt.ids.end(), head.begin(), head.end());
      prompt.text += input.begun;
    }
    if (request.one_call) input.call_end = call_end(input.format.calls);
    GrammarRequest grammar = request.grammar;
    if (forced) {
      if (grammar.kind != GrammarRequest::Kind::none) {
        throw ApiError(400, "tool_choice: goes with no other form of the output", "tool_choice", "invalid_value");
      }
      if (!request.tool.empty()) grammar = arguments_of(request.tools, request.tool);
    }
    const bool thinks_first = input.format.begins_in_reasoning && !forced;
    input.constraint = constraint_of(source, grammar, thinks_first ? std::string(kEndThink) : "", begun_content);
    const CallFormat calls = input.format.calls;
    const std::shared_ptr<const TokenTrie>& with_mark =
        calls == CallFormat::v3_1 && source.call_trie != nullptr ? source.call_trie : source.trie;
    if (forced && request.tool.empty()) {
      input.constraint = constraint_by(call_grammar(calls, request.tools), with_mark);
    } else if (!input.constraint && calls != CallFormat::none && has_strict(request.tools)) {
      // Whether there is a call at all is the model's choice.
      auto strict = constraint_by(call_grammar(calls, request.tools, true), with_mark, call_begin(calls));
      strict->returns = true;
      input.constraint = std::move(strict);
    }
    input.thinking_budget = budget_of(source.tokenizer, request, input);
    input.ids = std::move(prompt.ids);
    input.text = std::move(prompt.text);
  } catch (const Error& error) {
    throw ApiError(400, fmt::format("messages: {}", error.what()), "messages", "invalid_value");
  }
  return input;
}

std::vector<int32_t> text_ids(const Tokenizer& tokenizer, std::string_view text, bool add_special_tokens,
                              bool parse_special) {
  std::vector<int32_t> ids = tokenizer.encode(text, parse_special);
  const int32_t bos = tokenizer.bos_id();
  if (add_special_tokens && tokenizer.adds_bos() && bos >= 0 && (ids.empty() || ids.front() != bos))
    ids.insert(ids.begin(), bos);
  return ids;
}

std::vector<bool> unsaid_begins(const Tokenizer& tokenizer, const CompletionRequest& request) {
  std::vector<bool> unsaid;
  const bool adds = request.add_special_tokens && tokenizer.adds_bos() && tokenizer.bos_id() >= 0;
  for (const Prompt& prompt : request.prompts) {
    const std::string* text = std::get_if<std::string>(&prompt);
    const bool says = text != nullptr && adds && request.parse_special &&
                      text->starts_with(tokenizer.token_bytes(tokenizer.bos_id()));
    unsaid.push_back(text != nullptr && adds && !says);
  }
  return unsaid;
}

std::vector<std::vector<int32_t>> completion_inputs(const PromptSource& source, const CompletionRequest& request) {
  const Tokenizer& tokenizer = source.tokenizer;
  std::vector<std::vector<int32_t>> inputs;
  for (const Prompt& prompt : request.prompts) {
    const std::string* text = std::get_if<std::string>(&prompt);
    if (!request.suffix) {
      inputs.push_back(text != nullptr ? text_ids(tokenizer, *text, request.add_special_tokens, request.parse_special)
                                       : std::get<std::vector<int32_t>>(prompt));
      continue;
    }
    const int32_t begin = tokenizer.id_of("<｜fim▁begin｜>"), hole = tokenizer.id_of("<｜fim▁hole｜>"),
                  end = tokenizer.id_of("<｜fim▁end｜>");
    if (begin < 0 || hole < 0 || end < 0) {
      throw ApiError(400, "suffix: the model's tokenizer has no marks to fill in between", "suffix",
                     "unsupported_value");
    }
    std::vector<int32_t> ids;
    const auto append = [&](const std::vector<int32_t>& more) { ids.insert(ids.end(), more.begin(), more.end()); };
    if (request.add_special_tokens && tokenizer.adds_bos() && tokenizer.bos_id() >= 0)
      ids.push_back(tokenizer.bos_id());
    ids.push_back(begin);
    append(text != nullptr ? tokenizer.encode(*text, false) : std::get<std::vector<int32_t>>(prompt));
    ids.push_back(hole);
    append(tokenizer.encode(*request.suffix, false));
    ids.push_back(end);
    inputs.push_back(std::move(ids));
  }
  return inputs;
}

}  // namespace fathom::serve
