// Texts as windows of tokens, for what runs a model over them.
#include <algorithm>

#include "base/utf8.h"
#include "cli/command.h"
#include "infer/score.h"

namespace fathom::cli {

std::vector<std::vector<int32_t>> text_windows(const std::string& text, const std::string& where,
                                               const Tokenizer& tokenizer, const ModelConfig& config, int64_t window,
                                               std::string_view command) {
  constexpr int64_t kTextWindow = 2048;  // when the model's context allows
  const std::vector<int32_t> ids = errors_at(where, [&] { return tokenizer.encode(text); });
  if (ids.size() < 2) throw Error("{}: has fewer than two tokens, nothing to predict", where);
  if (window > config.max_position_embeddings) {
    throw UsageError("{}: --window is {}, more than the model's context of {}", command, window,
                     config.max_position_embeddings);
  }
  const int64_t wish = window > 0 ? window : std::min(kTextWindow, config.max_position_embeddings);
  return cut_windows(ids, std::max<int64_t>(2, wish));
}

}  // namespace fathom::cli
