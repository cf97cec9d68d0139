#include "infer/constraint.h"

#include <limits>

#include "base/error.h"

namespace fathom {

ConstraintState::ConstraintState(const Constraint& constraint)
    : constraint_(constraint), matcher_(constraint.grammar), active_(constraint.behind.empty()) {
  if (!matcher_.accept(constraint.begun)) throw Error("what has begun does not follow the grammar");
}

void ConstraintState::mask(std::span<float> logits, std::span<const int64_t> eos_ids) {
  if (!active_) return;
  matcher_.allowed(*constraint_.masks, allowed_);
  const auto may_come = [&](size_t id) {
    return id / 64 < allowed_.size() && (allowed_[id / 64] >> (id % 64) & 1) != 0;
  };
  const auto exclude = [&](size_t id) { logits[id] = -std::numeric_limits<float>::infinity(); };
  std::vector<std::pair<size_t, float>> ends;
  for (const int64_t id : eos_ids) {
    const auto i = static_cast<size_t>(id);
    if (matcher_.can_end() && id >= 0 && i < logits.size()) ends.emplace_back(i, logits[i]);
  }
  for (size_t id = 0; id < logits.size(); ++id) {
    if (!may_come(id)) exclude(id);
  }
  for (const auto& [id, logit] : ends) logits[id] = logit;
}

void ConstraintState::take(std::string_view bytes) {
  if (active_) {
    if (!matcher_.accept(bytes)) throw Error("a token does not follow the grammar that the output must follow");
    if (constraint_.returns && matcher_.must_end()) leave();
    return;
  }
  tail_ += bytes;
  const size_t found = tail_.find(constraint_.behind);
  if (found == std::string::npos) {
    const size_t kept = constraint_.behind.size() - 1;
    if (tail_.size() > kept) tail_.erase(0, tail_.size() - kept);
    return;
  }
  active_ = true;
  // What the token says behind the mark is the beginning; it was not masked, and may be a line's end alone.
  std::string_view rest = std::string_view(tail_).substr(found + constraint_.behind.size());
  while (rest.starts_with('\n') || rest.starts_with(' ')) rest.remove_prefix(1);
  if (!matcher_.accept(rest)) {
    if (!constraint_.returns) throw Error("the output does not follow the grammar that it must follow");
    return leave();  // nothing that it speaks of
  }
  if (constraint_.returns && matcher_.must_end()) leave();
}

void ConstraintState::leave() {
  matcher_ = GrammarMatcher(constraint_.grammar);
  active_ = false;
  tail_.clear();
}

}  // namespace fathom
