#include "model/examples.h"

#include <algorithm>

#include "ops/cross_entropy.h"
#include "ops/device.h"

namespace fathom {

void add_window(Examples& examples, std::span<const int32_t> window, int32_t separator) {
  FATHOM_CHECK(window.size() > 1);
  const std::span<const int32_t> inputs = window.first(window.size() - 1);
  for (size_t begin = 0; begin < inputs.size();) {
    size_t end = inputs.size();
    if (separator != kNoSeparator) {
      const auto found = std::find(inputs.begin() + static_cast<std::ptrdiff_t>(begin), inputs.end(), separator);
      if (found != inputs.end()) end = static_cast<size_t>(found - inputs.begin()) + 1;
    }
    const std::span<const int32_t> sequence = inputs.subspan(begin, end - begin);
    examples.sequences.emplace_back(sequence.begin(), sequence.end());
    for (size_t i = begin; i < end; ++i) {
      const bool last = separator != kNoSeparator && inputs[i] == separator;
      examples.next.push_back(last ? kNoTarget : window[i + 1]);
      if (!last) ++examples.n_main;
    }
    begin = end;
  }
}

int64_t count_mtp_targets(const Examples& examples, int64_t n_modules) {
  int64_t n = 0;
  size_t begin = 0;
  for (const std::vector<int32_t>& ids : examples.sequences) {
    for (int64_t m = 1; m <= n_modules; ++m) {  // module m predicts tokens m + 1 and following, from 0
      for (size_t t = static_cast<size_t>(m); t + 1 < ids.size(); ++t) n += examples.next[begin + t] != kNoTarget;
    }
    begin += ids.size();
  }
  return n;
}

Example make_example(Context& ctx, const Examples& examples) {
  Example example{make_batch(ctx, examples.sequences), {}};
  FATHOM_CHECK(std::ssize(examples.next) == example.batch.n_tokens());
  example.targets = {.main = from_host(ctx, examples.next), .n_main = examples.n_main};
  if (examples.taught) {
    const TaughtTokens& taught = *examples.taught;
    const auto n = static_cast<size_t>(example.batch.n_tokens() * taught.k);
    FATHOM_CHECK(taught.ids.size() == n && taught.logprobs.size() == n && ctx.device == nullptr);
    TeacherRows& rows = example.targets.teacher;
    rows = {new_i32(ctx, {example.batch.n_tokens(), taught.k}), new_f32(ctx, {example.batch.n_tokens(), taught.k}),
            taught.temperature};
    std::copy(taught.ids.begin(), taught.ids.end(), rows.ids.i32());
    std::copy(taught.logprobs.begin(), taught.logprobs.end(), rows.logprobs.f32());
    example.targets.teacher_weight = taught.weight;
  }
  return example;
}

}  // namespace fathom
