// Text <-> token ids: the family's tokenizer.json (byte-level BPE) exactly, or plain bytes for tiny models.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/vocabulary.h"

namespace fathom {

class Tokenizer {
 public:
  // A tokenizer.json, a directory that holds one (tokenizer_config.json read beside it), or the word "bytes".
  // A directory whose tokenizer_config.json says {"tokenizer_class": "FathomBytesTokenizer"} is a bytes tokenizer too.
  static Tokenizer load(const std::filesystem::path& source);
  // The text of a tokenizer.json alone; `where` begins the messages.
  static Tokenizer parse(std::string json, const std::string& where);
  // The tokenizer of a GGUF file.
  static Tokenizer from_vocabulary(const Vocabulary& vocabulary, const std::string& where);
  static Tokenizer bytes();  // ids 0..255 are the bytes, 256 begins and 257 ends a text: 258 ids

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // No special token is added. Added tokens standing in the text become their ids unless parse_special is false.
  // A tokenizer that normalizes does so with what lies between added tokens. Text that is not UTF-8 throws Error with
  // the position of the first bad byte (bytes tokenizer: any text is fine).
  std::vector<int32_t> encode(std::string_view text, bool parse_special = true) const;

  // Text from outside that is to become a part of a prompt: with `guard`, a text that stands nowhere else, put into
  // whatever would be read as an added token of several characters, but for those in `kept`; at the end into what other
  // text could make one.
  std::string guarded(std::string_view text, std::string_view guard, std::span<const std::string_view> kept = {}) const;
  // Encodes such a prompt. Guards leave no trace but that what they stand in is plain text.
  std::vector<int32_t> encode_guarded(std::string_view prompt, std::string_view guard) const;

  // The exact inverse; bytes that are not UTF-8 come out as they are when raw, else as U+FFFD.
  // An id outside the vocabulary throws Error; a gap inside it decodes to nothing.
  std::string decode(std::span<const int32_t> ids, bool skip_special = false, bool raw = false) const;

  int64_t vocab_size() const;  // largest id + 1
  int32_t bos_id() const;      // -1: none
  int32_t eos_id() const;
  // Whether a text that is to be continued begins with the begin token: add_bos_token where the files say, else for all
  // tokenizers but bytes.
  bool adds_bos() const;
  bool is_special(int32_t id) const;
  bool is_mark(int32_t id) const;  // special, or an added token of several characters: never what guarded text becomes
  // The id of one token by its exact content, or -1.
  int32_t id_of(std::string_view content) const;
  std::string token_bytes(int32_t id) const;  // what decoding it emits

  const std::string& chat_template() const;  // Jinja source, empty when there is none
  // What it is from now on, for save() too, which then writes it to a file of its own. Error where it is no UTF-8, or
  // longer than kMaxTemplateBytes.
  void set_chat_template(std::string source);
  bool is_bytes() const;
  const std::string& json() const;  // the text of its tokenizer.json; empty for bytes

  // For a GGUF file. Error where lists cannot say what this tokenizer does.
  Vocabulary vocabulary() const;
  // Writes tokenizer.json and tokenizer_config.json (and the chat template) into a model directory, as loaded.
  void save(const std::filesystem::path& directory) const;

 private:
  struct Data;
  explicit Tokenizer(std::unique_ptr<Data> data);
  std::vector<int32_t> encode_text(std::string_view text, bool parse_special, std::string_view guard) const;
  std::unique_ptr<Data> data_;
};

std::string without_guards(std::string_view text, std::string_view guard);

// Decodes one token at a time and never emits half a character: bytes wait until their character is whole.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool skip_special = true);
  std::string push(int32_t id);  // text that is complete now
  std::string finish();          // what is left, with U+FFFD for a broken end
 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string pending_;
};

}  // namespace fathom
