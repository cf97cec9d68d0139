#include "serve/rank_messages.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "base/error.h"

namespace fathom::serve {
namespace {

struct Packer {
  std::string bytes{};
  void raw(const void* data, size_t n) { bytes.append(static_cast<const char*>(data), n); }
  static constexpr bool kReads = false;
};
struct Unpacker {
  std::string_view bytes;
  void raw(void* data, size_t n) {
    FATHOM_CHECK(n <= bytes.size());
    if (n > 0) std::memcpy(data, bytes.data(), n);
    bytes.remove_prefix(n);
  }
  static constexpr bool kReads = true;
};

// Both ways of a message in one place. Fields are named by structured bindings, so that one that is added to a struct
// does not compile before it is here.
template <class Archive>
class Passage {
 public:
  Passage(Archive& archive, const TokenTries& tries) : a_(archive), tries_(tries) {}

  template <class... Fields>
  void all(Fields&... fields) {
    (pass(fields), ...);
  }

  template <class T>
  requires std::is_trivially_copyable_v<T>
  void pass(T& value) { a_.raw(&value, sizeof value); }
  template <class T>
  void pass(std::vector<T>& values) {
    uint64_t n = values.size();
    pass(n);
    if constexpr (Archive::kReads) values.resize(n);
    if constexpr (std::is_trivially_copyable_v<T>) {
      a_.raw(values.data(), n * sizeof(T));
    } else {
      for (T& value : values) pass(value);
    }
  }
  void pass(std::string& text) {
    uint64_t n = text.size();
    pass(n);
    if constexpr (Archive::kReads) text.resize(n);
    a_.raw(text.data(), n);
  }
  template <class A, class B>
  void pass(std::pair<A, B>& value) {
    all(value.first, value.second);
  }
  template <class T>
  void pass(std::optional<T>& value) {
    bool there = value.has_value();
    pass(there);
    if constexpr (Archive::kReads) {
      if (there) value.emplace();
    }
    if (there) pass(*value);
  }
  // Whether there is one.
  template <class... Arguments>
  void pass(std::function<void(Arguments...)>& callback) {
    bool there = callback != nullptr;
    pass(there);
    if constexpr (Archive::kReads) {
      if (there) callback = [](Arguments...) {};
    }
  }

  void pass(SamplerOptions& value) {
    auto& [temperature, top_k, top_p, min_p, repetition, presence, frequency, bias] = value;
    all(temperature, top_k, top_p, min_p, repetition, presence, frequency, bias);
  }
  void pass(ThinkingBudget& value) {
    auto& [tokens, end_ids, ends, begin] = value;
    all(tokens, end_ids, ends, begin);
  }
  void pass(Grammar::Parts& value) {
    auto& [nodes, sets, start, n_classes, class_of] = value;
    all(nodes, sets, start, n_classes, class_of);
  }
  // One that several requests share is made once, with its masks.
  void pass(std::shared_ptr<const Constraint>& value) {
    auto found = std::find(constraints_.begin(), constraints_.end(), value);
    auto number = static_cast<uint64_t>(value == nullptr ? 0 : found - constraints_.begin() + 1);
    pass(number);
    if (number == 0) return;
    if (number > constraints_.size()) constraints_.push_back(made_of(value));
    value = constraints_[number - 1];
  }
  // What is read, or the given one.
  std::shared_ptr<const Constraint> made_of(const std::shared_ptr<const Constraint>& given) {
    Constraint constraint;
    Grammar::Parts parts;
    uint64_t trie = 0;
    if constexpr (!Archive::kReads) {
      constraint = *given;
      parts = constraint.grammar->parts();
      const auto of_masks = std::find(tries_.begin(), tries_.end(), constraint.masks->trie());
      FATHOM_CHECK(of_masks != tries_.end());
      trie = static_cast<uint64_t>(of_masks - tries_.begin());
    }
    auto& [grammar, masks, behind, begun, returns] = constraint;
    all(parts, trie, behind, begun, returns);
    if constexpr (!Archive::kReads) return given;
    grammar = std::make_shared<const Grammar>(std::move(parts));
    masks = std::make_shared<TokenMasks>(grammar, tries_.at(trie));
    return std::make_shared<const Constraint>(std::move(constraint));
  }
  void pass(GenerationOptions& value) {
    auto& [sampler, max_tokens, stop, eos_ids, stop_ids, min_tokens, seed, draft_tokens, constraint, budget, top,
           record] = value;
    all(sampler, max_tokens, stop, eos_ids, stop_ids, min_tokens, seed, draft_tokens, constraint, budget, top, record);
  }
  void pass(BatchRequest& value) {
    auto& [prompt, options, salt, owner, group, counts, top, on_prompt, on_progress, on_tokens, on_end] = value;
    all(prompt, options, salt, owner, group, counts, top, on_prompt, on_progress, on_tokens, on_end);
  }
  void pass(ExpertPlacement& value) {
    auto& [logical, physical] = value;
    all(logical, physical);
  }
  void pass(RankOrder& value) {
    auto& [kind, requests, cancelled, placements] = value;
    all(kind, requests, cancelled, placements);
  }

  void pass(TokenLogprobs& value) {
    auto& [logprob, top, rank] = value;
    all(logprob, top, rank);
  }
  void pass(SamplingRecord& value) {
    auto& [logprobs, entropies, begins, kept] = value;
    all(logprobs, entropies, begins, kept);
  }
  void pass(Generation& value) {
    auto& [ids, logprobs, sampling, prompt_logprobs, text, finish, stopped_by, refused, prompt_tokens, cached_tokens,
           passes, drafted, accepted, load, experts, queue_s, prefill_s, decode_s, plain_passes, plain_s] = value;
    all(ids, logprobs, sampling, prompt_logprobs, text, finish, stopped_by, refused, prompt_tokens, cached_tokens,
        passes, drafted, accepted, load, experts, queue_s, prefill_s, decode_s, plain_passes, plain_s);
  }
  void pass(RankEvent& value) {
    auto& [ticket, kind, text, ids, logprobs, timings, progress, result] = value;
    all(ticket, kind);
    switch (kind) {
      case RankEvent::Kind::tokens:
        return all(text, ids, logprobs, timings);
      case RankEvent::Kind::prompt:
        return all(logprobs);
      case RankEvent::Kind::progress:
        return all(progress);
      case RankEvent::Kind::end:
        return all(result, text);
    }
  }
  void pass(PassCounts& value) {
    auto& [passes, tokens, sequences, asked, prompt, cached, loaded, generated, drafts, drafted, accepted, accepted_at,
           corrupted, experts] = value;
    all(passes, tokens, sequences, asked, prompt, cached, loaded, generated, drafts, drafted, accepted, accepted_at,
        corrupted, experts);
  }
  void pass(RankReport& value) {
    auto& [events, state, counts] = value;
    all(events, state, counts);
  }

 private:
  Archive& a_;
  const TokenTries& tries_;
  std::vector<std::shared_ptr<const Constraint>> constraints_{};  // of this message so far
};

template <class Message>
std::string packed_message(Message& message, const TokenTries& tries) {
  Packer packer;
  Passage<Packer>(packer, tries).pass(message);
  return std::move(packer.bytes);
}
template <class Message>
Message unpacked_message(std::string_view bytes, const TokenTries& tries) {
  Message message;
  Unpacker unpacker{bytes};
  Passage<Unpacker>(unpacker, tries).pass(message);
  FATHOM_CHECK(unpacker.bytes.empty());
  return message;
}

}  // namespace

std::string packed(RankOrder order, const TokenTries& tries) { return packed_message(order, tries); }
std::string packed(RankReport report) { return packed_message(report, {}); }
RankOrder unpacked_order(std::string_view bytes, const TokenTries& tries) {
  return unpacked_message<RankOrder>(bytes, tries);
}
RankReport unpacked_report(std::string_view bytes) { return unpacked_message<RankReport>(bytes, {}); }

}  // namespace fathom::serve
