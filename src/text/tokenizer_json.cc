#include "text/tokenizer_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <unordered_map>
#include <unordered_set>

#include "base/error.h"
#include "base/json.h"
#include "base/utf8.h"
#include "text/byte_alphabet.h"

namespace fathom {
namespace {

namespace dom = simdjson::dom;

// Far above every released tokenizer. Each step is compiled, each byte of an added token makes a node to search with.
constexpr size_t kMaxPretokenizerSteps = 64;
constexpr size_t kMaxAddedTokenBytes = 1024;
constexpr size_t kMaxAddedTokensBytes = size_t{4} << 20;

constexpr const char* kByteLevelRegex =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

// Values of one object, with errors that name file and key.
class Reader {
 public:
  Reader(dom::object object, std::string where) : object_(object), where_(std::move(where)) {}
  const std::string& where() const { return where_; }

  // False where the key is absent or null.
  bool get(std::string_view key, dom::element& value) const { return !object_[key].get(value) && !value.is_null(); }
  bool flag(std::string_view key, bool otherwise) const {
    dom::element value;
    if (!get(key, value)) return otherwise;
    bool out;
    if (value.get(out)) throw Error("{}: {} is not true or false", where_, key);
    return out;
  }
  dom::element at(std::string_view key) const {
    dom::element value;
    if (!get(key, value)) throw Error("{}: {} is missing", where_, key);
    return value;
  }
  std::string_view text(std::string_view key) const {
    std::string_view out;
    if (at(key).get(out)) throw Error("{}: {} is not a string", where_, key);
    return out;
  }
  dom::array array(std::string_view key) const {
    dom::array out;
    if (at(key).get(out)) throw Error("{}: {} is not a list", where_, key);
    return out;
  }
  Reader object(std::string_view key) const { return of(at(key), fmt::format("{}: {}", where_, key)); }
  // Calls visit(Reader) for the objects of a list.
  template <class Visit>
  void for_each_object(std::string_view key, const Visit& visit) const {
    size_t i = 0;
    for (const dom::element value : array(key)) visit(of(value, fmt::format("{}: {}[{}]", where_, key, i++)));
  }
  static Reader of(dom::element value, const std::string& where) {
    dom::object out;
    if (value.get(out)) throw Error("{}: is not an object", where);
    return Reader(out, where);
  }
  dom::object values() const { return object_; }

 private:
  dom::object object_;
  std::string where_;
};

int32_t checked_id(dom::element value, const std::string& where, std::string_view token) {
  int64_t id;
  if (value.get(id) || id < 0 || id >= kMaxVocabSize) {
    throw Error("{}: the id of \"{}\" is not a whole number from 0 to {}", where, printable(token, 80),
                kMaxVocabSize - 1);
  }
  return static_cast<int32_t>(id);
}

void read_normalizer(const Reader& normalizer, TokenizerJson& out) {
  const std::string_view type = normalizer.text("type");
  if (type == "NFC") {
    out.nfc = true;
    return;
  }
  if (type != "Sequence") {
    throw Error("{}: the normalizer \"{}\" is not supported", normalizer.where(), printable(type, 80));
  }
  normalizer.for_each_object("normalizers", [&](const Reader& part) { read_normalizer(part, out); });
}

SplitBehavior read_behavior(const Reader& step) {
  const std::string_view name = step.text("behavior");
  if (name == "Removed") return SplitBehavior::removed;
  if (name == "Isolated") return SplitBehavior::isolated;
  if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
  if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
  if (name == "Contiguous") return SplitBehavior::contiguous;
  throw Error("{}: the Split behavior \"{}\" is not supported", step.where(), printable(name, 80));
}

struct PretokenizerSteps {
  std::vector<SplitRule> splits;
  bool byte_level = false;
};

void read_pretokenizer(const Reader& step, PretokenizerSteps& steps) {
  const std::string_view type = step.text("type");
  if (type == "Sequence") {
    step.for_each_object("pretokenizers", [&](const Reader& part) { read_pretokenizer(part, steps); });
    return;
  }
  if (steps.splits.size() == kMaxPretokenizerSteps) {
    throw Error("{}: is one step more than the {} that a pre-tokenizer may have", step.where(), kMaxPretokenizerSteps);
  }
  if (steps.byte_level) {
    throw Error("{}: \"{}\" comes after ByteLevel, which must be the last step", step.where(), printable(type, 80));
  }
  if (type == "Split") {
    const Reader pattern = step.object("pattern");
    dom::element text;
    SplitRule rule;
    rule.literal = !pattern.get("Regex", text);
    rule.pattern = std::string(pattern.text(rule.literal ? "String" : "Regex"));
    rule.behavior = read_behavior(step);
    rule.invert = step.flag("invert", false);
    steps.splits.push_back(rule);
  } else if (type == "Digits") {
    SplitRule rule;
    rule.pattern = "\\p{N}";
    rule.behavior = step.flag("individual_digits", false) ? SplitBehavior::isolated : SplitBehavior::contiguous;
    steps.splits.push_back(rule);
  } else if (type == "ByteLevel") {
    if (step.flag("add_prefix_space", true)) {
      throw Error("{}: ByteLevel with add_prefix_space is not supported", step.where());
    }
    if (step.flag("use_regex", true)) steps.splits.push_back({kByteLevelRegex});
    steps.byte_level = true;
  } else {
    throw Error("{}: the pre-tokenizer \"{}\" is not supported", step.where(), printable(type, 80));
  }
}

// Post-processors only add special tokens, which encode never does; an unknown one might do more.
void read_post_processor(const Reader& step) {
  const std::string_view type = step.text("type");
  if (type == "Sequence") {
    step.for_each_object("processors", read_post_processor);
  } else if (type != "ByteLevel" && type != "TemplateProcessing") {
    throw Error("{}: the post-processor \"{}\" is not supported", step.where(), printable(type, 80));
  }
}

void read_decoder(const Reader& root) {
  const Reader decoder = root.object("decoder");
  const std::string_view type = decoder.text("type");
  if (type != "ByteLevel") {
    throw Error("{}: \"{}\" is not supported, only ByteLevel is", decoder.where(), printable(type, 80));
  }
}

void refuse_unsupported_model(const Reader& model) {
  dom::element value;
  if (model.get("type", value) && model.text("type") != "BPE") {
    throw Error("{}: the type \"{}\" is not supported, only BPE is", model.where(), printable(model.text("type"), 80));
  }
  for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (model.get(key, value) && !model.text(key).empty()) throw Error("{}: {} is not supported", model.where(), key);
  }
  double dropout;
  if (model.get("dropout", value) && (value.get(dropout) || dropout != 0)) {
    throw Error("{}: dropout is not supported", model.where());
  }
  if (model.flag("byte_fallback", false)) throw Error("{}: byte_fallback is not supported", model.where());
}

using Vocab = std::unordered_map<std::string_view, int32_t>;  // as spelled in the file

Vocab read_vocab(const Reader& model, TokenizerJson& out) {
  const Reader entries = model.object("vocab");
  Vocab vocab;
  vocab.reserve(entries.values().size());
  int32_t largest = -1;
  for (const auto [token, value] : entries.values()) {
    const int32_t id = checked_id(value, entries.where(), token);
    vocab.emplace(token, id);
    largest = std::max(largest, id);
  }
  if (vocab.empty()) throw Error("{}: is empty", entries.where());
  out.tokens.resize(static_cast<size_t>(largest) + 1);
  out.present.resize(out.tokens.size());
  out.byte_ids.fill(-1);
  for (const auto [token, value] : entries.values()) {
    const auto id = static_cast<size_t>(vocab.at(token));
    if (token.empty()) throw Error("{}: the token of id {} is empty", entries.where(), id);
    if (out.present[id]) {
      throw Error("{}: the id {} belongs to \"{}\" and to another token", entries.where(), id, printable(token, 80));
    }
    out.present[id] = true;
    if (!unspell_bytes(token, out.tokens[id])) {
      out.tokens[id] = std::string(token);
    } else if (out.tokens[id].size() == 1) {
      out.byte_ids[static_cast<uint8_t>(out.tokens[id][0])] = static_cast<int32_t>(id);
    }
  }
  return vocab;
}

void read_merges(const Reader& model, const Vocab& vocab, TokenizerJson& out) {
  std::string joined;
  const dom::array list = model.array("merges");
  out.merges.reserve(list.size());
  for (const dom::element entry : list) {
    const auto fail = [&](const char* what, std::string_view detail) {
      throw Error("{}: merge {}: {} \"{}\"", model.where(), out.merges.size(), what, printable(detail, 80));
    };
    std::string_view left, right;
    dom::array pair;
    if (!entry.get(left)) {
      const size_t space = left.find(' ');
      if (space == std::string_view::npos || left.find(' ', space + 1) != std::string_view::npos) {
        fail("is not two tokens with a space between:", left);
      }
      right = left.substr(space + 1);
      left = left.substr(0, space);
    } else if (entry.get(pair) || pair.size() != 2 || pair.at(0).get(left) || pair.at(1).get(right)) {
      throw Error("{}: merge {}: is neither a string nor a pair of strings", model.where(), out.merges.size());
    }
    joined.assign(left);
    joined += right;
    const auto l = vocab.find(left), r = vocab.find(right), j = vocab.find(joined);
    if (l == vocab.end()) fail("not in the vocabulary:", left);
    if (r == vocab.end()) fail("not in the vocabulary:", right);
    if (j == vocab.end()) fail("its result is not in the vocabulary:", joined);
    out.merges.push_back({l->second, r->second, j->second});
  }
}

void read_added_tokens(const Reader& root, const Vocab& vocab, TokenizerJson& out) {
  dom::element value;
  if (!root.get("added_tokens", value)) return;
  std::unordered_set<std::string_view> seen;
  size_t content_bytes = 0;
  root.for_each_object("added_tokens", [&](const Reader& token) {
    AddedToken added;
    added.content = std::string(token.text("content"));
    if (added.content.empty()) throw Error("{}: the content is empty", token.where());
    if (added.content.size() > kMaxAddedTokenBytes) {
      throw Error("{}: the content has {} bytes, more than {}", token.where(), added.content.size(),
                  kMaxAddedTokenBytes);
    }
    content_bytes += added.content.size();
    if (content_bytes > kMaxAddedTokensBytes) {
      throw Error("{}: the contents have together more than {} bytes", token.where(), kMaxAddedTokensBytes);
    }
    dom::element id_value;
    if (!token.get("id", id_value)) throw Error("{}: \"{}\" has no id", token.where(), printable(added.content, 80));
    added.id = checked_id(id_value, token.where(), added.content);
    added.special = token.flag("special", false);
    added.lstrip = token.flag("lstrip", false);
    added.rstrip = token.flag("rstrip", false);
    added.single_word = token.flag("single_word", false);
    added.normalized = token.flag("normalized", !added.special);
    if (!seen.insert(token.text("content")).second) {
      throw Error("{}: \"{}\" is there twice", token.where(), printable(added.content, 80));
    }
    const auto id = static_cast<size_t>(added.id);
    if (id >= out.tokens.size()) {
      out.tokens.resize(id + 1);
      out.present.resize(id + 1);
    }
    const auto in_vocab = vocab.find(added.content);
    if (in_vocab == vocab.end() ? out.present[id] : in_vocab->second != added.id) {
      throw Error("{}: the id {} of \"{}\" is another token's, or the vocabulary has another id for it", token.where(),
                  id, printable(added.content, 80));
    }
    out.present[id] = true;
    out.tokens[id] = added.content;
    out.added.push_back(std::move(added));
  });
  std::sort(out.added.begin(), out.added.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
}

const char* behavior_name(SplitBehavior behavior) {
  switch (behavior) {
    case SplitBehavior::removed:
      return "Removed";
    case SplitBehavior::isolated:
      return "Isolated";
    case SplitBehavior::merged_with_previous:
      return "MergedWithPrevious";
    case SplitBehavior::merged_with_next:
      return "MergedWithNext";
    case SplitBehavior::contiguous:
      return "Contiguous";
  }
  return "";
}

}  // namespace

TokenizerJson parse_tokenizer_json(std::string_view text, const std::string& where) {
  const JsonDocument document = JsonDocument::parse(text, where);
  const Reader root = Reader::of(document.root(), where);
  TokenizerJson out;
  dom::element value;
  if (root.get("normalizer", value)) read_normalizer(root.object("normalizer"), out);
  PretokenizerSteps steps;
  read_pretokenizer(root.object("pre_tokenizer"), steps);
  if (!steps.byte_level)
    throw Error("{}: pre_tokenizer: has no ByteLevel step; only byte-level BPE is supported", where);
  out.splits = std::move(steps.splits);
  if (root.get("post_processor", value)) read_post_processor(root.object("post_processor"));
  read_decoder(root);
  const Reader model = root.object("model");
  refuse_unsupported_model(model);
  out.ignore_merges = model.flag("ignore_merges", false);
  const Vocab vocab = read_vocab(model, out);
  read_merges(model, vocab, out);
  read_added_tokens(root, vocab, out);
  return out;
}

std::string write_tokenizer_json(const std::vector<SplitRule>& splits, const std::vector<std::string>& tokens,
                                 const std::vector<Merge>& merges, const std::vector<AddedToken>& added) {
  std::vector<std::string> spelled, merge_texts;
  for (const AddedToken& token : added) {
    if (token.id == static_cast<int32_t>(spelled.size())) spelled.push_back(token.content);
  }
  for (const std::string& token : tokens) spelled.push_back(spell_bytes(token));
  for (const Merge& merge : merges) {
    merge_texts.push_back(spelled[static_cast<size_t>(merge.left)] + " " + spelled[static_cast<size_t>(merge.right)]);
  }
  return spelled_tokenizer_json({splits}, spelled, merge_texts, added);
}

std::string spelled_tokenizer_json(const TextRules& rules, const std::vector<std::string>& tokens,
                                   const std::vector<std::string>& merges, const std::vector<AddedToken>& added) {
  using Json = nlohmann::ordered_json;
  const auto byte_level = [](bool add_prefix_space, bool trim_offsets, bool use_regex) {
    return Json{{"type", "ByteLevel"},
                {"add_prefix_space", add_prefix_space},
                {"trim_offsets", trim_offsets},
                {"use_regex", use_regex}};
  };
  Json added_tokens = Json::array();
  for (const AddedToken& token : added) {
    added_tokens.push_back({{"id", token.id},
                            {"content", token.content},
                            {"single_word", token.single_word},
                            {"lstrip", token.lstrip},
                            {"rstrip", token.rstrip},
                            {"normalized", token.normalized},
                            {"special", token.special}});
  }
  Json steps = Json::array();
  for (const SplitRule& split : rules.splits) {
    steps.push_back({{"type", "Split"},
                     {"pattern", {{split.literal ? "String" : "Regex", split.pattern}}},
                     {"behavior", behavior_name(split.behavior)},
                     {"invert", split.invert}});
  }
  steps.push_back(byte_level(false, true, false));
  // nlohmann's ordered object looks for a key from its start at every insertion, so the vocabulary is written by hand.
  std::string vocab, merge_list;
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (tokens[id].empty()) continue;
    if (!vocab.empty()) vocab += ",\n";
    vocab += fmt::format("{}:{}", Json(tokens[id]).dump(), id);
  }
  for (const std::string& merge : merges) {
    if (!merge_list.empty()) merge_list += ",\n";
    merge_list += Json(merge).dump();
  }
  const Json head{{"version", "1.0"},
                  {"truncation", nullptr},
                  {"padding", nullptr},
                  {"added_tokens", added_tokens},
                  {"normalizer", rules.nfc ? Json{{"type", "NFC"}} : Json()},
                  {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", steps}}},
                  {"post_processor", byte_level(true, false, true)},
                  {"decoder", byte_level(true, true, true)}};
  std::string out = head.dump(1);
  out.resize(out.size() - 2);  // the closing "\n}"
  out += R"(,
 "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,)";
  if (rules.ignore_merges) out += " \"ignore_merges\": true,";
  out += " \"vocab\": {\n";
  return out + vocab + "},\n\"merges\": [\n" + merge_list + "]}}\n";
}

}  // namespace fathom
