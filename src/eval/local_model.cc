// A model in this process that answers (eval/answerer.h).
#include <algorithm>
#include <numeric>

#include "base/terminal.h"
#include "eval/answerer_kinds.h"
#include "infer/continuation_scores.h"
#include "text/answer_parser.h"

namespace fathom::eval {
namespace {

struct Input {
  std::vector<int32_t> ids;
  AnswerFormat format{};
};

std::vector<int32_t> text_ids(const Tokenizer& tokenizer, const std::string& text, bool add_begin) {
  std::vector<int32_t> ids = tokenizer.encode(text);
  const int32_t bos = tokenizer.bos_id();
  if (add_begin && tokenizer.adds_bos() && bos >= 0 && (ids.empty() || ids.front() != bos))
    ids.insert(ids.begin(), bos);
  return ids;
}

Input conversation_input(const LocalModel& local, const nlohmann::ordered_json& messages,
                         std::optional<bool> thinking) {
  ChatOptions chat = local.chat;
  if (thinking) chat.kwargs["thinking"] = chat.kwargs["enable_thinking"] = *thinking;  // templates know either name
  ChatPrompt prompt = encode_chat(local.tokenizer, local.chat_template, messages, chat);
  Input input{std::move(prompt.ids), answer_format_of(local.chat_template, prompt.own_end)};
  input.format.calls = CallFormat::none;
  return input;
}

Answer answer_of(const Generation& g, const AnswerFormat* format) {
  Answer answer{.text = g.text,
                .finish = g.finish == FinishReason::eos || g.finish == FinishReason::stop ? "stop" : "length",
                .prompt_tokens = g.prompt_tokens,
                .tokens = std::ssize(g.ids),
                .seconds = g.prefill_s + g.decode_s};
  if (format == nullptr) return answer;
  answer.text.clear();
  AnswerParser parser(*format);
  std::vector<AnswerPart> parts = parser.push(g.text), last = parser.finish();
  parts.insert(parts.end(), last.begin(), last.end());
  for (const AnswerPart& part : parts) {
    (part.kind == AnswerPart::Kind::reasoning ? answer.reasoning : answer.text) += part.text;
  }
  return answer;
}

// What a choice is to be read as; the context's begin is left out where there is no room.
ScoredContinuations ids_of(const LocalModel& local, const ChoiceQuestion& question, bool& truncated) {
  const Tokenizer& tokenizer = local.tokenizer;
  ScoredContinuations ids;
  if (!question.messages.is_null()) {
    ids.context = conversation_input(local, question.messages, std::nullopt).ids;
    for (const std::string& text : question.continuations) ids.continuations.push_back(tokenizer.encode(text, false));
  } else {
    for (const std::string& text : question.continuations) {
      const auto [context, continuation] = with_spaces_moved(question.context, text);
      std::vector<int32_t> whole = text_ids(tokenizer, context + continuation, true);
      ids.context = text_ids(tokenizer, context, true);
      if (ids.context.empty()) {
        const int32_t begin = tokenizer.bos_id() >= 0 ? tokenizer.bos_id() : tokenizer.eos_id();
        if (begin < 0) throw Error("{}: there is no context, and the tokenizer has no begin token", question.id);
        ids.context = {begin};
        whole.insert(whole.begin(), begin);
      }
      const size_t n = std::min(ids.context.size(), whole.size() - 1);
      ids.continuations.emplace_back(whole.begin() + static_cast<int64_t>(n), whole.end());
    }
  }
  size_t longest = 0;
  for (const auto& continuation : ids.continuations) longest = std::max(longest, continuation.size());
  const auto most = static_cast<size_t>(local.model.config.max_position_embeddings) + 1;
  if (longest >= most) throw Error("a continuation has {} tokens, as many as the model's context", longest);
  if (const size_t n = ids.context.size(); n + longest > most) {
    truncated = true;
    ids.context.erase(ids.context.begin(), ids.context.begin() + static_cast<int64_t>(n + longest - most));
  }
  return ids;
}

}  // namespace

void answer_questions(LocalModel& local, std::span<const Question> questions, const OnAnswer& tell,
                      const Interrupted& interrupted, const Skip& skip) {
  Batching batching(local.ctx, local.model, &local.tokenizer, local.batching);
  std::string failure;
  const auto begin = [&](size_t q, int64_t sample) {
    const Question& question = questions[q];
    const bool talks = !question.messages.is_null();
    Input input;
    try {
      if (talks) {
        input = conversation_input(local, question.messages, question.thinking);
      } else {
        input.ids = text_ids(local.tokenizer, question.prompt, true);
      }
    } catch (const Error& error) {
      throw Error("{}: {}", question.id, error.what());
    }
    GenerationOptions options;
    options.max_tokens = question.max_tokens;
    options.stop = question.stop;
    options.eos_ids = local.eos_ids;
    options.seed = question.seed + static_cast<uint64_t>(sample);
    options.draft_tokens = local.batching.draft_tokens;
    options.sampler.temperature = question.temperature;
    options.sampler.top_p = question.top_p;
    options.sampler.top_k = question.top_k;
    BatchRequest request;
    request.prompt = std::move(input.ids);
    request.options = std::move(options);
    request.on_tokens = [](auto&&...) {};
    request.on_end = [&, q, sample, talks, format = input.format](const Generation& g, const std::string& error) {
      if (!error.empty()) {
        failure = fmt::format("{}: {}", questions[q].id, error);
        return;
      }
      tell(q, sample, answer_of(g, talks ? &format : nullptr));
    };
    const int64_t n_tokens = std::ssize(request.prompt);
    try {
      batching.add(std::move(request));
    } catch (const UsageError&) {
      throw;
    } catch (const Error& error) {  // the prompt is too long
      tell(q, sample, {.text = "", .error = error.what(), .prompt_tokens = n_tokens});
    }
  };

  size_t q = 0;
  int64_t sample = 0;
  // As many wait as can begin in the next pass: what waits holds its prompt.
  const auto add_more = [&] {
    while (q < questions.size() && batching.n_waiting() + batching.n_running() < 2 * local.batching.max_sequences) {
      if (sample == questions[q].samples) {
        ++q;
        sample = 0;
        continue;
      }
      if (!skip || !skip(q, sample)) begin(q, sample);
      ++sample;
    }
  };
  add_more();
  while (batching.n_waiting() + batching.n_running() > 0) {
    if (interrupted && interrupted()) return;
    batching.step();
    if (!failure.empty()) throw Error(failure);
    add_more();
  }
}

void score_choices(LocalModel& local, std::span<const ChoiceQuestion> questions, const OnChoices& tell,
                   const Interrupted& interrupted) {
  std::vector<ScoredContinuations> elements;
  std::vector<size_t> whose;
  std::vector<ChoiceAnswer> answers(questions.size());
  for (size_t q = 0; q < questions.size(); ++q) {
    if (interrupted && interrupted()) return;
    try {
      elements.push_back(ids_of(local, questions[q], answers[q].truncated));
      whose.push_back(q);
    } catch (const Error& error) {
      answers[q].error = error.what();
      tell(q, std::move(answers[q]));
    }
  }
  score_continuations(
      local.ctx, local.model, elements,
      [&](size_t e, std::span<const ContinuationScore> scores) {
        ChoiceAnswer& answer = answers[whose[e]];
        answer.context_tokens = std::ssize(elements[e].context);
        for (size_t c = 0; c < scores.size(); ++c) {
          answer.scores.push_back({scores[c].logprob, scores[c].greedy, std::ssize(elements[e].continuations[c])});
        }
        tell(whose[e], std::move(answer));
      },
      interrupted);
}

std::vector<int32_t> tokens_of(LocalModel& local, const std::string& text, bool add_begin, const Interrupted&) {
  return text_ids(local.tokenizer, text, add_begin);
}

void score_windows(LocalModel& local, Windows windows, const OnWindow& tell, const Interrupted& interrupted) {
  std::vector<ScoredContinuations> elements;
  for (const auto& window : windows) {
    FATHOM_CHECK(window.size() >= 2);
    elements.push_back({{window.front()}, {{window.begin() + 1, window.end()}}});
  }
  score_continuations(
      local.ctx, local.model, elements,
      [&](size_t e, std::span<const ContinuationScore> scores) { tell(e, scores[0].logprob); }, interrupted);
}

}  // namespace fathom::eval
