#include "text/tokenizer.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <deque>
#include <nlohmann/json.hpp>
#include <optional>
#include <unordered_map>

#include "base/error.h"
#include "base/file.h"
#include "base/json.h"
#include "base/utf8.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/byte_alphabet.h"
#include "text/pretokenizer.h"
#include "text/tokenizer_json.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
namespace dom = simdjson::dom;

constexpr const char* kBytesClass = "FathomBytesTokenizer";
constexpr const char* kBytesBegin = "<|begin|>";
constexpr const char* kBytesEnd = "<|end|>";
constexpr size_t kMaxConfigBytes = size_t{8} << 20;
constexpr size_t kMaxTemplateBytes = size_t{1} << 20;

// What words of this text became, so that the next of the same is copied. Refers to the text and the ids themselves.
class WordCache {
 public:
  explicit WordCache(size_t text_bytes) {
    if (text_bytes < 512) return;
    entries_.resize(std::min(std::bit_ceil(text_bytes / 8), size_t{1} << 15));
  }
  // Copies the ids of an equal word seen before; false if there is none.
  bool copy(std::string_view word, std::vector<int32_t>& ids) {
    if (entries_.empty()) return false;
    last_ = &entries_[hash(word) & (entries_.size() - 1)];
    if (last_->word != word) return false;
    const size_t at = ids.size();
    ids.resize(at + last_->n_ids);
    std::memcpy(&ids[at], &ids[last_->first_id], last_->n_ids * sizeof(int32_t));
    return true;
  }
  // After a copy that failed: ids[first_id..] is what the word became.
  void keep(std::string_view word, size_t first_id, size_t n_ids) {
    if (!entries_.empty()) *last_ = {word, first_id, n_ids};
  }

 private:
  struct Entry {
    std::string_view word;
    size_t first_id = 0, n_ids = 0;
  };
  static size_t hash(std::string_view word) {
    constexpr uint64_t kMultiplier = 0x9E3779B97F4A7C15;
    uint64_t h = word.size() * kMultiplier;
    const char* p = word.data();
    size_t left = word.size();
    for (; left >= 8; left -= 8, p += 8) {
      uint64_t chunk;
      std::memcpy(&chunk, p, 8);
      h = (h ^ chunk) * kMultiplier;
      h ^= h >> 31;
    }
    uint64_t tail = 0;
    std::memcpy(&tail, p, left);
    h = (h ^ tail) * kMultiplier;
    return static_cast<size_t>(h >> 32 ^ h >> 11);
  }
  std::vector<Entry> entries_;
  Entry* last_ = nullptr;
};

// Appends the ids of the added tokens in `text` and calls plain(piece) for what lies between them, in order.
template <class Plain>
void for_each_between(const AddedTokenFinder* added, std::string_view text, std::vector<int32_t>& ids, Plain&& plain) {
  size_t done = 0;
  AddedTokenFinder::Match match;
  while (added != nullptr && added->find(text, done, match)) {
    if (match.begin > done) plain(text.substr(done, match.begin - done));
    ids.push_back(match.id);
    done = match.end;
  }
  if (done < text.size()) plain(text.substr(done));
}

bool names_bytes_class(const std::string& config, const std::string& where) {
  const JsonDocument document = JsonDocument::parse(config, where);
  dom::element value;
  std::string_view name;
  if (document.root()["tokenizer_class"].get(value) || value.is_null()) return false;
  if (value.get(name)) throw Error("{}: tokenizer_class is not a string", where);
  return name == kBytesClass;
}

std::optional<std::string> read_if_there(const fs::path& file, size_t max_bytes) {
  if (!path_exists(file)) return std::nullopt;
  return read_file(file, max_bytes);
}

std::vector<AddedToken> bytes_added_tokens() {
  return {{.id = 256, .content = kBytesBegin, .special = true, .normalized = false},
          {.id = 257, .content = kBytesEnd, .special = true, .normalized = false}};
}

// The same vocabulary as byte-level BPE without merges, for other programs.
std::string bytes_tokenizer_json() {
  std::vector<std::string> tokens;
  tokens.reserve(258);
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  return write_tokenizer_json({}, tokens, {}, bytes_added_tokens());
}

// Whether these lists are what vocabulary() makes of the bytes tokenizer, perhaps with unused ids behind.
bool is_bytes_vocabulary(const Vocabulary& v) {
  if (!v.merges.empty() || v.tokens.size() < 258 || v.tokens[256] != kBytesBegin || v.tokens[257] != kBytesEnd) {
    return false;
  }
  for (int byte = 0; byte < 256; ++byte) {
    if (v.tokens[static_cast<size_t>(byte)] != spell_bytes(std::string(1, static_cast<char>(byte)))) return false;
  }
  return std::all_of(v.kinds.begin() + 258, v.kinds.end(),
                     [](int64_t kind) { return kind == static_cast<int64_t>(TokenKind::unused); });
}

}  // namespace

struct Tokenizer::Data {
  bool bytes = false;
  bool ignore_merges = false;
  std::vector<std::string> tokens;   // [id]: what decoding emits
  std::vector<bool> special, marks;  // [id]
  std::unordered_map<std::string_view, int32_t> id_by_content;
  AddedTokenFinder raw_tokens, normalized_tokens;  // the first have precedence over all the text
  Pretokenizer pretokenizer;
  Bpe bpe;
  int32_t bos = -1, eos = -1;
  std::optional<bool> add_bos;  // where the files say
  std::string chat_template;
  bool template_in_own_file = false;
  std::string tokenizer_json, tokenizer_config;  // as read, for save()

  void set_tokens(std::vector<std::string> contents, const std::vector<AddedToken>& added);
  void read_vocabulary(std::string json_text, const std::string& where);
  void read_config(std::string config_text, const std::string& where);
  void encode_plain(std::string_view text, WordCache& cache, Pretokenizer::Cutter& cutter,
                    std::vector<int32_t>& ids) const;
};

void Tokenizer::Data::set_tokens(std::vector<std::string> contents, const std::vector<AddedToken>& added) {
  tokens = std::move(contents);
  special.assign(tokens.size(), false);
  marks.assign(tokens.size(), false);
  id_by_content.reserve(tokens.size());
  std::vector<AddedToken> raw, normalized;
  for (const AddedToken& token : added) {
    (token.normalized ? normalized : raw).push_back(token);
    special[static_cast<size_t>(token.id)] = token.special;
    marks[static_cast<size_t>(token.id)] = token.special || utf8_unit(token.content).bytes < token.content.size();
    id_by_content.emplace(tokens[static_cast<size_t>(token.id)], token.id);
  }
  raw_tokens = AddedTokenFinder(raw);
  normalized_tokens = AddedTokenFinder(normalized);
  for (size_t id = 0; id < tokens.size(); ++id) {
    if (!tokens[id].empty()) id_by_content.emplace(tokens[id], static_cast<int32_t>(id));
  }
}

void Tokenizer::Data::read_vocabulary(std::string json_text, const std::string& where) {
  tokenizer_json = std::move(json_text);
  TokenizerJson json = parse_tokenizer_json(tokenizer_json, where);
  ignore_merges = json.ignore_merges;
  pretokenizer = Pretokenizer(std::move(json.splits), where);
  bpe = Bpe(json.byte_ids, std::move(json.merges));
  set_tokens(std::move(json.tokens), json.added);
  // For files without a configuration: the spellings of the family, and of the bytes tokenizer.
  const auto first_of = [&](std::initializer_list<const char*> spellings) {
    for (const char* spelling : spellings) {
      const auto found = id_by_content.find(spelling);
      if (found != id_by_content.end()) return found->second;
    }
    return int32_t{-1};
  };
  bos = first_of({"<｜begin▁of▁sentence｜>", kBytesBegin});
  eos = first_of({"<｜end▁of▁sentence｜>", kBytesEnd});
}

// tokenizer_config.json: the tokens that begin and end a text, and the chat template.
void Tokenizer::Data::read_config(std::string config_text, const std::string& where) {
  tokenizer_config = std::move(config_text);
  const JsonDocument document = JsonDocument::parse(tokenizer_config, where);
  dom::object config;
  if (document.root().get(config)) throw Error("{}: is not a JSON object", where);
  const auto token_id = [&](const char* key) {
    dom::element value;
    std::string_view content;
    if (config[key].get(value) || value.is_null()) return int32_t{-1};
    dom::object object;
    if (!value.get(object) && object["content"].get(value)) throw Error("{}: {} has no content", where, key);
    if (value.get(content)) throw Error("{}: {} is not a string", where, key);
    const auto found = id_by_content.find(content);
    if (found == id_by_content.end()) {
      throw Error("{}: {} \"{}\" is not in the vocabulary", where, key, printable(content, 80));
    }
    return found->second;
  };
  bos = token_id("bos_token");
  eos = token_id("eos_token");
  dom::element value;
  if (!config["add_bos_token"].get(value) && !value.is_null()) {
    bool wanted = false;
    if (value.get(wanted)) throw Error("{}: add_bos_token is neither true nor false", where);
    add_bos = wanted;
  }
  if (config["chat_template"].get(value) || value.is_null()) return;
  std::string_view source;
  dom::array named;
  if (!value.get(named)) {  // a list of {name, template}: the one named "default"
    for (size_t i = 0; const dom::element entry : named) {
      std::string_view name, text;
      if (entry["name"].get(name) || entry["template"].get(text)) {
        throw Error("{}: chat_template[{}] is not an object with name and template", where, i);
      }
      if (name == "default") source = text;
      ++i;
    }
  } else if (value.get(source)) {
    throw Error("{}: chat_template is not a string", where);
  }
  if (source.size() > kMaxTemplateBytes)
    throw Error("{}: chat_template is longer than {} bytes", where, kMaxTemplateBytes);
  chat_template = std::string(source);
}

Tokenizer::Tokenizer(std::unique_ptr<Data> data) : data_(std::move(data)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::bytes() {
  auto data = std::make_unique<Data>();
  data->bytes = true;
  std::vector<std::string> tokens;
  tokens.reserve(258);
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  tokens.emplace_back(kBytesBegin);
  tokens.emplace_back(kBytesEnd);
  data->bos = 256;
  data->eos = 257;
  data->set_tokens(std::move(tokens), bytes_added_tokens());
  return Tokenizer(std::move(data));
}

Tokenizer Tokenizer::parse(std::string json, const std::string& where) {
  Tokenizer tokenizer(std::make_unique<Data>());
  tokenizer.data_->read_vocabulary(std::move(json), where);
  return tokenizer;
}

Tokenizer Tokenizer::from_vocabulary(const Vocabulary& vocabulary, const std::string& where) {
  Tokenizer tokenizer = bytes();
  if (!is_bytes_vocabulary(vocabulary)) tokenizer = parse(tokenizer_json_of(vocabulary, where), where);
  Data& data = *tokenizer.data_;
  const auto checked = [&](int64_t id) {
    if (id >= tokenizer.vocab_size()) throw Error("{}: the begin or end token {} is no token", where, id);
    return static_cast<int32_t>(id);
  };
  data.bos = checked(vocabulary.bos);
  data.eos = checked(vocabulary.eos);
  data.add_bos = vocabulary.add_bos;
  if (vocabulary.chat_template.size() > kMaxTemplateBytes)
    throw Error("{}: the chat template is longer than {} bytes", where, kMaxTemplateBytes);
  data.chat_template = vocabulary.chat_template;
  data.template_in_own_file = !data.chat_template.empty();
  return tokenizer;
}

Vocabulary Tokenizer::vocabulary() const {
  const std::string where = "the tokenizer";
  const std::string json = data_->tokenizer_json.empty() ? bytes_tokenizer_json() : data_->tokenizer_json;
  Vocabulary vocabulary = vocabulary_of(parse_tokenizer_json(json, where), where);
  vocabulary.bos = data_->bos;
  vocabulary.eos = data_->eos;
  vocabulary.add_bos = adds_bos();
  vocabulary.chat_template = data_->chat_template;
  return vocabulary;
}

Tokenizer Tokenizer::load(const fs::path& source) {
  if (source == "bytes") return bytes();
  const bool is_directory = path_is_directory(source);
  const fs::path file = is_directory ? source / "tokenizer.json" : source;
  // A tokenizer.json under another name may lie beside files that are not its own.
  const bool has_company = file.filename() == "tokenizer.json";
  const fs::path config_file = file.parent_path() / "tokenizer_config.json";
  const fs::path template_file = file.parent_path() / "chat_template.jinja";
  const std::string where = printable(file.native());

  std::optional<std::string> config, own_template;
  if (has_company) {
    config = read_if_there(config_file, kMaxConfigBytes);
    own_template = read_if_there(template_file, kMaxTemplateBytes);
  }
  Tokenizer tokenizer = bytes();
  if (!config || !names_bytes_class(*config, printable(config_file.native()))) {
    if (is_directory && !path_exists(file)) {
      throw Error("{}: there is no tokenizer.json in this directory", printable(source.native()));
    }
    tokenizer = parse(read_file(file, kMaxTokenizerJsonBytes), where);
  }
  Data& data = *tokenizer.data_;
  if (config) data.read_config(std::move(*config), printable(config_file.native()));
  if (own_template) {
    data.chat_template = std::move(*own_template);
    data.template_in_own_file = true;
    if (data.chat_template.empty()) {
      throw Error("{}: is empty; write a chat template or remove the file", printable(template_file.native()));
    }
    if (const size_t at = first_invalid_utf8(data.chat_template); at != kNoPosition) {
      throw Error("{}: not UTF-8 at byte {}", printable(template_file.native()), at);
    }
  }
  return tokenizer;
}

void Tokenizer::Data::encode_plain(std::string_view text, WordCache& cache, Pretokenizer::Cutter& cutter,
                                   std::vector<int32_t>& ids) const {
  cutter.cut(text, [&](std::string_view word) {
    if (cache.copy(word, ids)) return;
    const size_t first = ids.size();
    const auto whole = ignore_merges ? id_by_content.find(word) : id_by_content.end();
    if (whole != id_by_content.end()) {
      ids.push_back(whole->second);
    } else {
      bpe.encode(word, ids);
    }
    cache.keep(word, first, ids.size() - first);
  });
}

std::string without_guards(std::string_view text, std::string_view guard) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t found = std::min(text.find(guard, at), text.size());
    out += text.substr(at, found - at);
    at = found + guard.size();
  }
  return out;
}

std::string Tokenizer::guarded(std::string_view text, std::string_view guard,
                               std::span<const std::string_view> kept) const {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t n = utf8_unit(text.substr(at)).bytes;
    const std::string_view rest = text.substr(at);
    out += rest.substr(0, n);
    if (data_->raw_tokens.begins_mark(rest, kept) || data_->normalized_tokens.begins_mark(rest, kept)) out += guard;
    at += n;
  }
  return out;
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool parse_special) const {
  return encode_text(text, parse_special, {});
}

std::vector<int32_t> Tokenizer::encode_guarded(std::string_view prompt, std::string_view guard) const {
  return encode_text(prompt, true, guard);
}

std::vector<int32_t> Tokenizer::encode_text(std::string_view text, bool parse_special, std::string_view guard) const {
  const Data& data = *data_;
  std::vector<int32_t> ids;
  if (!data.bytes) {
    if (const size_t at = first_invalid_utf8(text); at != kNoPosition)
      throw Error("the text is not UTF-8 at byte {}", at);
  }
  WordCache cache(data.bytes ? 0 : text.size());
  Pretokenizer::Cutter cutter(data.pretokenizer);
  std::deque<std::string> cleared;  // the cache refers to them
  const auto plain = [&](std::string_view piece) {
    if (!guard.empty() && piece.find(guard) != std::string_view::npos) {
      piece = cleared.emplace_back(without_guards(piece, guard));
    }
    if (data.bytes) {
      for (const char c : piece) ids.push_back(static_cast<uint8_t>(c));
    } else {
      data.encode_plain(piece, cache, cutter, ids);
    }
  };
  const auto normalized = [&](std::string_view piece) {
    for_each_between(parse_special ? &data.normalized_tokens : nullptr, piece, ids, plain);
  };
  for_each_between(parse_special ? &data.raw_tokens : nullptr, text, ids, normalized);
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special, bool raw) const {
  std::string out;
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocab_size())
      throw Error("the id {} is not in the vocabulary, which has {} ids", id, vocab_size());
    if (!(skip_special && is_special(id))) out += data_->tokens[static_cast<size_t>(id)];
  }
  return raw ? out : mend_utf8(out);
}

int64_t Tokenizer::vocab_size() const { return static_cast<int64_t>(data_->tokens.size()); }
int32_t Tokenizer::bos_id() const { return data_->bos; }
int32_t Tokenizer::eos_id() const { return data_->eos; }
bool Tokenizer::adds_bos() const { return data_->bos >= 0 && data_->add_bos.value_or(!data_->bytes); }
bool Tokenizer::is_bytes() const { return data_->bytes; }
const std::string& Tokenizer::json() const { return data_->tokenizer_json; }
const std::string& Tokenizer::chat_template() const { return data_->chat_template; }

void Tokenizer::set_chat_template(std::string source) {
  if (source.size() > kMaxTemplateBytes) throw Error("the chat template is longer than {} bytes", kMaxTemplateBytes);
  if (const size_t at = first_invalid_utf8(source); at != kNoPosition)
    throw Error("the chat template is not UTF-8 at byte {}", at);
  data_->chat_template = std::move(source);
  data_->template_in_own_file = !data_->chat_template.empty();
  auto config = nlohmann::ordered_json::parse(data_->tokenizer_config, nullptr, /*allow_exceptions=*/false);
  if (!config.is_object() || config.erase("chat_template") == 0) return;
  data_->tokenizer_config = config.dump(1) + "\n";
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() && data_->special[static_cast<size_t>(id)];
}

bool Tokenizer::is_mark(int32_t id) const {
  return id >= 0 && id < vocab_size() && data_->marks[static_cast<size_t>(id)];
}

int32_t Tokenizer::id_of(std::string_view content) const {
  const auto found = data_->id_by_content.find(content);
  return found == data_->id_by_content.end() ? -1 : found->second;
}

std::string Tokenizer::token_bytes(int32_t id) const { return decode({&id, 1}, false, true); }

void Tokenizer::save(const fs::path& directory) const {
  make_directory(directory);
  std::string json = data_->tokenizer_json, config = data_->tokenizer_config;
  if (json.empty()) json = bytes_tokenizer_json();
  if (config.empty()) {
    const auto content = [&](int32_t id) {
      return id < 0 ? nlohmann::ordered_json() : nlohmann::ordered_json(token_bytes(id));
    };
    config = nlohmann::ordered_json{{"tokenizer_class", data_->bytes ? kBytesClass : "PreTrainedTokenizerFast"},
                                    {"add_bos_token", adds_bos()},
                                    {"bos_token", content(data_->bos)},
                                    {"eos_token", content(data_->eos)},
                                    {"clean_up_tokenization_spaces", false}}
                 .dump(1) +
             "\n";
  }
  write_file_atomically(directory / "tokenizer.json", json);
  write_file_atomically(directory / "tokenizer_config.json", config);
  if (data_->template_in_own_file) write_file_atomically(directory / "chat_template.jinja", data_->chat_template);
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer), skip_special_(skip_special) {}

std::string StreamDecoder::push(int32_t id) {
  pending_ += tokenizer_->decode({&id, 1}, skip_special_, true);
  // A character has at most four bytes, so only the last three can be the beginning of one that is not whole.
  size_t whole = pending_.size();
  for (size_t back = 1; back <= std::min<size_t>(3, pending_.size()); ++back) {
    const Utf8Unit unit = utf8_unit(std::string_view(pending_).substr(pending_.size() - back));
    if (unit.incomplete && unit.bytes == back) whole = pending_.size() - back;
  }
  std::string out = mend_utf8(std::string_view(pending_).substr(0, whole));
  pending_.erase(0, whole);
  return out;
}

std::string StreamDecoder::finish() {
  std::string out = mend_utf8(pending_);
  pending_.clear();
  return out;
}

}  // namespace fathom
