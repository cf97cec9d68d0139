// Hostile and mistaken tokenizer files: each case must be refused with one line that names the file and what is wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "refusal.h"
#include "text/chat.h"
#include "text/tokenizer.h"
#include "text/tokenizer_fixture.h"

namespace fathom {
namespace {

namespace fs = std::filesystem;
using test::Json;
using test::TemporaryDirectory;
using std::string_literals::operator""s;
using testing::HasSubstr;
using testing::StartsWith;

// A whole tokenizer, small enough to be broken everywhere.
const char* const kSmall = R"({"version":"1.0","added_tokens":[
{"id":12,"content":"<s>","special":true,"normalized":false,"lstrip":false,"rstrip":false,"single_word":false},
{"id":13,"content":"<x>","special":false,"normalized":true,"lstrip":true,"rstrip":true,"single_word":true}],
"normalizer":{"type":"Sequence","normalizers":[]},
"pre_tokenizer":{"type":"Sequence","pretokenizers":[
{"type":"Split","pattern":{"Regex":"\\p{N}{1,3}"},"behavior":"Isolated","invert":false},
{"type":"Digits","individual_digits":true},
{"type":"ByteLevel","add_prefix_space":false,"use_regex":true}]},
"post_processor":{"type":"ByteLevel"},"decoder":{"type":"ByteLevel"},
"model":{"type":"BPE","dropout":null,"byte_fallback":false,"ignore_merges":false,
"vocab":{"h":0,"e":1,"l":2,"o":3,"Ġ":4,"w":5,"r":6,"d":7,"he":8,"ll":9,"hell":10,"Ġw":11},
"merges":["h e","l l",["he","ll"],"Ġ w"]}})";
constexpr const char* kSmallText = "hello world<s> lower <x> old";

// One line of text that a terminal shows as it is.
bool is_one_line(const std::string& message) { return printable(message, 100'000) == message; }

// What loading `text` as a tokenizer.json says after the file's name.
class Refusals {
 public:
  std::string operator()(const std::string& text, const std::string& name = "small.json") const {
    const fs::path file = directory_.write(name, text);
    const std::string message = refusal([&] { (void)Tokenizer::load(file); });
    EXPECT_TRUE(is_one_line(message)) << message;
    if (message == "(accepted)") return message;
    EXPECT_THAT(message, StartsWith(file.string() + ": "));
    return message.substr(file.string().size() + 2);
  }

 private:
  TemporaryDirectory directory_;
};

Json changed(const char* pointer, const char* value) {
  Json json = Json::parse(kSmall);
  const Json::json_pointer at(pointer);
  if (value != nullptr) {
    json[at] = Json::parse(value);
  } else {
    json[at.parent_pointer()].erase(at.back());
  }
  return json;
}

struct JsonCase {
  const char* pointer;
  const char* value;  // null: the key is taken out
  const char* message;
};

const JsonCase kCases[] = {
    // The frame.
    {"/model", nullptr, "model is missing"},
    {"/model", "null", "model is missing"},
    {"/model", "[]", "model: is not an object"},
    {"/model", "\"BPE\"", "model: is not an object"},
    {"/decoder", nullptr, "decoder is missing"},
    {"/decoder", "\"ByteLevel\"", "decoder: is not an object"},
    {"/decoder/type", "\"Metaspace\"", "decoder: \"Metaspace\" is not supported, only ByteLevel is"},
    {"/decoder/type", "\"Sequence\"", "decoder: \"Sequence\" is not supported"},
    {"/decoder/type", "\"a\\nb\\u001b[2J\"", "\"a\\x0ab\\x1b[2J\" is not supported"},
    {"/decoder/type", nullptr, "decoder: type is missing"},
    {"/decoder/type", "1", "decoder: type is not a string"},
    {"/normalizer", "{\"type\": \"NFKC\"}", "normalizer: the normalizer \"NFKC\" is not supported"},
    {"/normalizer", "{\"type\": \"Lowercase\"}", "\"Lowercase\" is not supported"},
    {"/normalizer", "3", "normalizer: is not an object"},
    {"/normalizer/type", nullptr, "normalizer: type is missing"},
    {"/normalizer/normalizers", nullptr, "normalizer: normalizers is missing"},
    {"/normalizer/normalizers", "{}", "normalizer: normalizers is not a list"},
    {"/normalizer/normalizers", "[{\"type\": \"Sequence\", \"normalizers\": []}, {\"type\": \"Prepend\"}]",
     "normalizer: normalizers[1]: the normalizer \"Prepend\" is not supported"},
    {"/normalizer/normalizers", "[7]", "normalizer: normalizers[0]: is not an object"},
    {"/post_processor", "{\"type\": \"BertProcessing\"}", "post_processor: the post-processor \"BertProcessing\""},
    {"/post_processor", "\"x\"", "post_processor: is not an object"},
    {"/post_processor", "{\"type\": \"Sequence\"}", "post_processor: processors is missing"},
    {"/post_processor",
     "{\"type\": \"Sequence\", \"processors\": [{\"type\": \"ByteLevel\"}, {\"type\": \"Roberta\"}]}",
     "post_processor: processors[1]: the post-processor \"Roberta\" is not supported"},
    // The pre-tokenizer.
    {"/pre_tokenizer", nullptr, "pre_tokenizer is missing"},
    {"/pre_tokenizer", "null", "pre_tokenizer is missing"},
    {"/pre_tokenizer", "\"ByteLevel\"", "pre_tokenizer: is not an object"},
    {"/pre_tokenizer", "{\"type\": \"Whitespace\"}", "the pre-tokenizer \"Whitespace\" is not supported"},
    {"/pre_tokenizer/type", "null", "pre_tokenizer: type is missing"},
    {"/pre_tokenizer/pretokenizers", nullptr, "pre_tokenizer: pretokenizers is missing"},
    {"/pre_tokenizer/pretokenizers", "\"all\"", "pre_tokenizer: pretokenizers is not a list"},
    {"/pre_tokenizer/pretokenizers", "[]", "pre_tokenizer: has no ByteLevel step"},
    {"/pre_tokenizer/pretokenizers/1", "{\"type\": \"Metaspace\"}",
     "pre_tokenizer: pretokenizers[1]: the pre-tokenizer \"Metaspace\" is not supported"},
    {"/pre_tokenizer/pretokenizers/1", "[]", "pretokenizers[1]: is not an object"},
    {"/pre_tokenizer/pretokenizers/1", "{\"type\": \"ByteLevel\", \"add_prefix_space\": false}",
     "pretokenizers[2]: \"ByteLevel\" comes after ByteLevel, which must be the last step"},
    {"/pre_tokenizer/pretokenizers/3", "{\"type\": \"Digits\"}",
     "pretokenizers[3]: \"Digits\" comes after ByteLevel, which must be the last step"},
    {"/pre_tokenizer/pretokenizers/2/add_prefix_space", "true", "ByteLevel with add_prefix_space is not supported"},
    {"/pre_tokenizer/pretokenizers/2/add_prefix_space", nullptr, "ByteLevel with add_prefix_space is not supported"},
    {"/pre_tokenizer/pretokenizers/2/add_prefix_space", "0", "add_prefix_space is not true or false"},
    {"/pre_tokenizer/pretokenizers/2/use_regex", "\"no\"", "use_regex is not true or false"},
    {"/pre_tokenizer/pretokenizers/1/individual_digits", "1", "individual_digits is not true or false"},
    {"/pre_tokenizer/pretokenizers/0/invert", "null", "(accepted)"},
    {"/pre_tokenizer/pretokenizers/0/invert", "[]", "pretokenizers[0]: invert is not true or false"},
    {"/pre_tokenizer/pretokenizers/0/behavior", "\"Shuffled\"", "the Split behavior \"Shuffled\" is not supported"},
    {"/pre_tokenizer/pretokenizers/0/behavior", nullptr, "pretokenizers[0]: behavior is missing"},
    {"/pre_tokenizer/pretokenizers/0/pattern", nullptr, "pretokenizers[0]: pattern is missing"},
    {"/pre_tokenizer/pretokenizers/0/pattern", "\"\\\\s\"", "pretokenizers[0]: pattern: is not an object"},
    {"/pre_tokenizer/pretokenizers/0/pattern", "{}", "pretokenizers[0]: pattern: String is missing"},
    {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "7", "pattern: Regex is not a string"},
    {"/pre_tokenizer/pretokenizers/0/pattern", "{\"String\": []}", "pattern: String is not a string"},
    {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"\"", "a Split has an empty pattern"},
    {"/pre_tokenizer/pretokenizers/0/pattern", "{\"String\": \"\"}", "a Split has an empty pattern"},
    {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"(a\"", "not a valid regex"},
    {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"[a\"", "not a valid regex"},
    {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"*a\"", "not a valid regex"},
    {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"a\\\\\"", "not a valid regex"},
    {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"\\\\p{Nonsense}\"", "not a valid regex"},
    {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"(?<=a+)b\"", "not a valid regex"},
    {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"a{3,1}\\n\"", "a{3,1}\\x0a"},
    {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"((a{1,999}){1,999}){1,999}\"", "not a valid regex"},
    {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"a\\\\Cb\"", "not a valid regex"},
    {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"\\\\h+\"", "the regex uses \\h, which is not supported"},
    {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"[a-z&&[^b]]\"", "intersects classes (&&)"},
    {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"[a[bc]]\"", "nests classes"},
    // The model.
    {"/model/type", "\"WordPiece\"", "model: the type \"WordPiece\" is not supported, only BPE is"},
    {"/model/type", "\"Unigram\"", "model: the type \"Unigram\" is not supported, only BPE is"},
    {"/model/type", "3", "model: type is not a string"},
    {"/model/dropout", "0.1", "model: dropout is not supported"},
    {"/model/dropout", "\"0\"", "model: dropout is not supported"},
    {"/model/byte_fallback", "true", "model: byte_fallback is not supported"},
    {"/model/byte_fallback", "0", "model: byte_fallback is not true or false"},
    {"/model/ignore_merges", "\"yes\"", "model: ignore_merges is not true or false"},
    {"/model/continuing_subword_prefix", "\"##\"", "model: continuing_subword_prefix is not supported"},
    {"/model/end_of_word_suffix", "\"</w>\"", "model: end_of_word_suffix is not supported"},
    {"/model/end_of_word_suffix", "0", "model: end_of_word_suffix is not a string"},
    {"/model/vocab", nullptr, "model: vocab is missing"},
    {"/model/vocab", "[\"h\"]", "model: vocab: is not an object"},
    {"/model/vocab", "{}", "model: vocab: is empty"},
    {"/model/vocab/h", "-1", "vocab: the id of \"h\" is not a whole number from 0 to 1048575"},
    {"/model/vocab/h", "0.5", "the id of \"h\" is not a whole number"},
    {"/model/vocab/h", "0.0", "the id of \"h\" is not a whole number"},
    {"/model/vocab/h", "\"0\"", "the id of \"h\" is not a whole number"},
    {"/model/vocab/h", "null", "the id of \"h\" is not a whole number"},
    {"/model/vocab/h", "[0]", "the id of \"h\" is not a whole number"},
    {"/model/vocab/h", "true", "the id of \"h\" is not a whole number"},
    {"/model/vocab/h", "1048576", "the id of \"h\" is not a whole number from 0 to 1048575"},
    {"/model/vocab/h", "9223372036854775808", "the id of \"h\" is not a whole number"},
    {"/model/vocab/h", "99", "(accepted)"},  // ids may have gaps
    {"/model/vocab/h", "1048575", "(accepted)"},
    {"/model/vocab/h", "1", "vocab: the id 1 belongs to"},
    {"/model/vocab/", "50", "vocab: the token of id 50 is empty"},
    {"/model/merges", nullptr, "model: merges is missing"},
    {"/model/merges", "{}", "model: merges is not a list"},
    {"/model/merges", "[]", "(accepted)"},
    {"/model/merges/1", "\"ll\"", "merge 1: is not two tokens with a space between: \"ll\""},
    {"/model/merges/1", "\"\"", "merge 1: is not two tokens with a space between: \"\""},
    {"/model/merges/1", "\"h e l\"", "merge 1: is not two tokens with a space between: \"h e l\""},
    {"/model/merges/1", "\"l  l\"", "merge 1: is not two tokens with a space between: \"l  l\""},
    {"/model/merges/1", "\" l\"", "merge 1: not in the vocabulary: \"\""},
    {"/model/merges/1", "\"l \"", "merge 1: not in the vocabulary: \"\""},
    {"/model/merges/1", "\"zz l\"", "merge 1: not in the vocabulary: \"zz\""},
    {"/model/merges/1", "\"l z\\u0000\"", "merge 1: not in the vocabulary: \"z\\x00\""},
    {"/model/merges/1", "\"h o\"", "merge 1: its result is not in the vocabulary: \"ho\""},
    {"/model/merges/1", "7", "merge 1: is neither a string nor a pair of strings"},
    {"/model/merges/1", "null", "merge 1: is neither a string nor a pair of strings"},
    {"/model/merges/1", "[\"l\"]", "merge 1: is neither a string nor a pair of strings"},
    {"/model/merges/1", "[\"l\", \"l\", \"l\"]", "merge 1: is neither a string nor a pair of strings"},
    {"/model/merges/1", "[\"l\", 2]", "merge 1: is neither a string nor a pair of strings"},
    // Added tokens.
    {"/added_tokens", "{}", "added_tokens is not a list"},
    {"/added_tokens", "null", "(accepted)"},
    {"/added_tokens/0", "\"<s>\"", "added_tokens[0]: is not an object"},
    {"/added_tokens/1/id", nullptr, "added_tokens[1]: \"<x>\" has no id"},
    {"/added_tokens/1/id", "\"13\"", "added_tokens[1]: the id of \"<x>\" is not a whole number"},
    {"/added_tokens/1/id", "-2", "the id of \"<x>\" is not a whole number"},
    {"/added_tokens/1/id", "1048576", "the id of \"<x>\" is not a whole number from 0 to 1048575"},
    {"/added_tokens/1/id", "1048575", "(accepted)"},
    {"/added_tokens/1/id", "12", "added_tokens[1]: the id 12 of \"<x>\" is another token's"},
    {"/added_tokens/1/id", "3", "added_tokens[1]: the id 3 of \"<x>\" is another token's"},
    {"/added_tokens/1/content", "\"h\"",
     "added_tokens[1]: the id 13 of \"h\" is another token's, or the vocabulary has"},
    {"/added_tokens/1/content", nullptr, "added_tokens[1]: content is missing"},
    {"/added_tokens/1/content", "\"\"", "added_tokens[1]: the content is empty"},
    {"/added_tokens/1/content", "5", "added_tokens[1]: content is not a string"},
    {"/added_tokens/1/content", "\"<s>\"", "added_tokens[1]: \"<s>\" is there twice"},
    {"/added_tokens/1/special", "1", "added_tokens[1]: special is not true or false"},
    {"/added_tokens/1/lstrip", "\"\"", "added_tokens[1]: lstrip is not true or false"},
    {"/added_tokens/1/rstrip", "2", "added_tokens[1]: rstrip is not true or false"},
    {"/added_tokens/1/single_word", "{}", "added_tokens[1]: single_word is not true or false"},
    {"/added_tokens/1/normalized", "[]", "added_tokens[1]: normalized is not true or false"},
};

TEST(MalformedTokenizer, IsRefusedWithItsReason) {
  const Refusals refusals;
  EXPECT_EQ(refusals(kSmall), "(accepted)");
  for (const auto& [pointer, value, message] : kCases) {
    EXPECT_THAT(refusals(changed(pointer, value).dump()), HasSubstr(message))
        << pointer << " = " << (value == nullptr ? "(taken out)" : value);
  }
}

std::string repeated(const std::string& piece, size_t n) {
  std::string text;
  while (n-- > 0) text += piece;
  return text;
}

TEST(MalformedTokenizer, TextThatIsNoTokenizerIsRefused) {
  const Refusals refusals;
  const std::string small = kSmall;
  const std::pair<std::string, const char*> cases[] = {
      {"", "is empty, expected JSON"},
      {" \n", "not valid JSON"},
      {"[]", "is not an object"},
      {"\"tokenizer\"", "is not an object"},
      {"{}", "pre_tokenizer is missing"},
      {"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not valid JSON, at line 1, column 1"},
      {small.substr(0, small.size() - 1), "not valid JSON, at line 12"},
      {small + "}", "not valid JSON, at line 12"},
      {small + '\0', "not valid JSON"},
      {std::string(100, '\0'), "not valid JSON, at column 1"},
      {"{\"model\": {\"vocab\": {\"h\0\": 1}}}"s, "not valid JSON"},
      {"{\"version\": \"1.0\",\n\"version\": \"1.0\"}", "the key \"version\" stands twice in one object"},
      {"{\"model\": {\"vocab\": {\"h\": 1, \"e\": 2, \"h\": 3}}}", "the key \"h\" stands twice in one object"},
      {"{\"model\": {\"vocab\": {\"\\ud800\": 1}}}", "not valid JSON"},
      {"{\"model\": {\"vocab\": {\"\\udc00\": 1}}}", "not valid JSON"},
      {"{\"model\": {\"vocab\": {\"\xff\": 1}}}", "not valid JSON"},
      {"{\"model\": {\"vocab\": {\"a\nb\": 1}}}", "not valid JSON, at line 1"},
      {repeated("[", 1'000'000), "not valid JSON"},
      {repeated("[", 1'000'000) + repeated("]", 1'000'000), "JSON nested deeper than 64 levels"},
      {repeated("{\"a\":", 100) + "1" + repeated("}", 100), "JSON nested deeper than 64 levels"},
  };
  for (const auto& [text, message] : cases) {
    EXPECT_THAT(refusals(text), HasSubstr(message)) << printable(text, 80);
  }
}

// Lists whose length or whose strings would take memory or time without bound.
TEST(MalformedTokenizer, SizesBeyondTheLimitsAreRefused) {
  const Refusals refusals;
  Json json = Json::parse(kSmall);
  json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = repeated("a", 65537);
  EXPECT_THAT(refusals(json.dump()), HasSubstr("a Split pattern has 65537 bytes, more than 65536"));

  json = Json::parse(kSmall);
  Json steps = json["pre_tokenizer"]["pretokenizers"];
  const Json split = steps[0];
  for (int n = 0; n < 100; ++n) steps.insert(steps.begin(), split);
  json["pre_tokenizer"]["pretokenizers"] = steps;
  EXPECT_THAT(refusals(json.dump()), HasSubstr("pretokenizers[64]: is one step more than the 64"));

  json = Json::parse(kSmall);
  json["added_tokens"][1]["content"] = repeated("x", 1025);
  EXPECT_THAT(refusals(json.dump()), HasSubstr("added_tokens[1]: the content has 1025 bytes, more than 1024"));
  json["added_tokens"][1]["content"] = repeated("x", 1024);
  EXPECT_EQ(refusals(json.dump()), "(accepted)");
  for (int n = 0; n < 5000; ++n) {
    Json token = json["added_tokens"][1];
    token["id"] = 100 + n;
    token["content"] = fmt::format("{:01000}", n);
    json["added_tokens"].push_back(token);
  }
  EXPECT_THAT(refusals(json.dump()), HasSubstr("the contents have together more than 4194304 bytes"));
}

TEST(MalformedTokenizer, RegexesThatBacktrackWithoutEndAreCutOff) {
  const TemporaryDirectory directory;
  const std::string text = repeated("h", 60) + "ow";  // each ends in what the text has, but elsewhere
  int cut_off = 0;
  for (const char* pattern : {"(?:h+)+w", "(?:h|hh|e)*w", "(?:(?:h*)*)*w", "(h*)*\\\\1w", "((?:h|(?1))+)w",
                              "(?1)(h?(?1)?){9}w", "(?:h(?=(?:h+)+w))+w"}) {
    const std::string value = "\"" + std::string(pattern) + "\"";
    const Json json = changed("/pre_tokenizer/pretokenizers/0/pattern/Regex", value.c_str());
    const fs::path file = directory.write("regex.json", json.dump());
    const Tokenizer tokenizer = Tokenizer::load(file);
    const std::string message = refusal([&] { (void)tokenizer.encode(text); });
    EXPECT_TRUE(is_one_line(message)) << message;
    if (message.find("the regex takes too long on this text") == std::string::npos) continue;
    EXPECT_THAT(message, StartsWith(file.string()));
    ++cut_off;
  }
  EXPECT_GE(cut_off, 3);  // an engine may be clever about the rest
}

struct ConfigCase {
  const char* config;
  const char* message;
};

// Of the tokenizer_config.json beside it.
const ConfigCase kConfigCases[] = {
    {"", "is empty, expected JSON"},
    {"{", "not valid JSON, at column 2"},
    {"{\"bos_token\": null, \"bos_token\": null}", "the key \"bos_token\" stands twice"},
    {"[]", "is not a JSON object"},
    {"\"x\"", "is not a JSON object"},
    {"{\"tokenizer_class\": 7}", "tokenizer_class is not a string"},
    {"{\"bos_token\": \"<nowhere>\"}", "bos_token \"<nowhere>\" is not in the vocabulary"},
    {"{\"eos_token\": \"\"}", "eos_token \"\" is not in the vocabulary"},
    {"{\"eos_token\": \"a\\u001b\"}", "eos_token \"a\\x1b\" is not in the vocabulary"},
    {"{\"bos_token\": 1}", "bos_token is not a string"},
    {"{\"bos_token\": [\"<s>\"]}", "bos_token is not a string"},
    {"{\"eos_token\": {}}", "eos_token has no content"},
    {"{\"eos_token\": {\"content\": null}}", "eos_token is not a string"},
    {"{\"eos_token\": {\"content\": 3}}", "eos_token is not a string"},
    {"{\"eos_token\": {\"content\": \"<nowhere>\"}}", "eos_token \"<nowhere>\" is not in the vocabulary"},
    {"{\"chat_template\": 1}", "chat_template is not a string"},
    {"{\"chat_template\": {\"default\": \"x\"}}", "chat_template is not a string"},
    {"{\"chat_template\": [1]}", "chat_template[0] is not an object with name and template"},
    {"{\"chat_template\": [{\"name\": \"tool_use\", \"template\": \"x\"}, {\"template\": \"x\"}]}",
     "chat_template[1] is not an object with name and template"},
    {"{\"chat_template\": [{\"name\": \"default\"}]}", "chat_template[0] is not an object with name and template"},
    {"{\"chat_template\": [{\"name\": \"default\", \"template\": 7}]}", "chat_template[0] is not an object with"},
    {"{\"chat_template\": \"\xff\"}", "not valid JSON"},
};

class Beside {
 public:
  Beside() { directory_.write("tokenizer.json", kSmall); }
  std::string operator()(const std::string& name, const std::string& content) const {
    directory_.write(name, content);
    return refusal();
  }
  std::string refusal() const {
    const std::string message = fathom::refusal([&] { (void)Tokenizer::load(directory_.path()); });
    EXPECT_TRUE(is_one_line(message)) << message;
    return message;
  }
  const fs::path& path() const { return directory_.path(); }

 private:
  TemporaryDirectory directory_;
};

TEST(MalformedTokenizerConfig, IsRefusedWithItsReason) {
  const Beside beside;
  EXPECT_EQ(beside("tokenizer_config.json", "{}"), "(accepted)");
  for (const auto& [config, message] : kConfigCases) {
    const std::string said = beside("tokenizer_config.json", config);
    EXPECT_THAT(said, HasSubstr(message)) << config;
    EXPECT_THAT(said, StartsWith((beside.path() / "tokenizer_config.json").string() + ": "));
  }
  const Json large{{"chat_template", repeated("x", (1 << 20) + 1)}};
  EXPECT_THAT(beside("tokenizer_config.json", large.dump()), HasSubstr("chat_template is longer than 1048576 bytes"));
}

TEST(MalformedTemplateFile, IsRefusedWithItsReason) {
  const Beside beside;
  const std::pair<std::string, const char*> cases[] = {
      {"", "is empty"},
      {"{{ '\xff' }}", "not UTF-8 at byte 4"},
      {"\xe4\xb8", "not UTF-8 at byte 0"},
      {repeated("x", (1 << 20) + 1), "has 1048577 bytes, more than the 1048576 that such a file may have"},
      {"a\0b"s, "(accepted)"},
  };
  for (const auto& [content, message] : cases) {
    EXPECT_THAT(beside("chat_template.jinja", content), HasSubstr(message)) << printable(content, 40);
  }
}

// Names under which no plain file stands.
TEST(MalformedTokenizer, OnlyReadableFilesAreRead) {
  const std::string names[] = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"};
  const std::pair<std::function<void(const fs::path&)>, const char*> cases[] = {
      {[](const fs::path& p) { fs::create_directory(p); }, "is not a regular file"},
      {[](const fs::path& p) { ASSERT_EQ(mkfifo(p.c_str(), 0600), 0); }, "is not a regular file"},
      {[](const fs::path& p) { fs::create_symlink("/dev/zero", p); }, "is not a regular file"},
      {[](const fs::path& p) { fs::create_symlink(p.filename(), p); }, "cannot look at it"},
      {[](const fs::path& p) { fs::create_symlink("nowhere", p); }, "is a symbolic link to nothing"},
      {[](const fs::path& p) {
         const int fd = socket(AF_UNIX, SOCK_STREAM, 0);
         sockaddr_un address{.sun_family = AF_UNIX};
         ASSERT_LT(p.native().size(), sizeof address.sun_path);
         p.native().copy(address.sun_path, p.native().size());
         ASSERT_EQ(bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
         close(fd);
       },
       "cannot open"},
      {[](const fs::path& p) {
         std::ofstream(p).put('x');
         fs::resize_file(p, uintmax_t{1} << 40);
       },
       "has 1099511627776 bytes, more than the"},
  };
  for (const std::string& name : names) {
    for (const auto& [make, message] : cases) {
      const Beside beside;
      fs::remove(beside.path() / name);
      make(beside.path() / name);
      EXPECT_THAT(beside.refusal(), HasSubstr((beside.path() / name).string() + ": " + message));
    }
  }
  const Beside beside;
  fs::remove(beside.path() / "tokenizer.json");
  EXPECT_THAT(beside.refusal(), HasSubstr("there is no tokenizer.json in this directory"));
  EXPECT_THAT(refusal([&] { (void)Tokenizer::load(beside.path() / "none"); }), HasSubstr("none: cannot open"));
  EXPECT_THAT(refusal([&] { (void)Tokenizer::load(""); }), HasSubstr("cannot open"));
  EXPECT_THAT(refusal([&] { (void)Tokenizer::load(std::string(5000, 'x')); }), HasSubstr("File name too long"));
}

TEST(MalformedTokenizer, FilesWithoutPermissionAreRefused) {
  if (geteuid() == 0) GTEST_SKIP() << "root may read everything";
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}) {
    const Beside beside;
    std::ofstream(beside.path() / name) << "{}";
    fs::permissions(beside.path() / name, fs::perms::none);
    EXPECT_THAT(beside.refusal(), HasSubstr("cannot open: Permission denied"));
  }
}

TEST(TokenizerText, WhatCannotBeReadIsRefusedWithItsPlace) {
  const TemporaryDirectory directory;
  const Tokenizer tokenizer = Tokenizer::load(directory.write("small.json", kSmall));
  EXPECT_THAT(refusal([&] { (void)tokenizer.encode("hell\xff"); }), HasSubstr("not UTF-8 at byte 4"));
  EXPECT_THAT(refusal([&] { (void)tokenizer.encode("hello x"); }), HasSubstr("no token for the byte 0x78"));
  EXPECT_THAT(refusal([&] { (void)tokenizer.encode({"h\0", 2}); }), HasSubstr("no token for the byte 0x00"));
  const std::vector<int32_t> ids{3, 14};
  EXPECT_THAT(refusal([&] { (void)tokenizer.decode(ids); }), HasSubstr("the id 14 is not in the vocabulary"));
  const std::vector<int32_t> negative{-1};
  EXPECT_THAT(refusal([&] { (void)tokenizer.decode(negative); }), HasSubstr("the id -1 is not in the vocabulary"));
}

// A file in memory: thousands of them take no time.
class MemoryFile {
 public:
  MemoryFile() : fd_(memfd_create("tokenizer", MFD_CLOEXEC)) {}
  ~MemoryFile() { close(fd_); }
  fs::path write(const std::string& content) const {
    EXPECT_EQ(ftruncate(fd_, static_cast<off_t>(content.size())), 0);
    EXPECT_EQ(pwrite(fd_, content.data(), content.size(), 0), static_cast<ssize_t>(content.size()));
    return fmt::format("/proc/self/fd/{}", fd_);
  }

 private:
  const int fd_;
};

// A tokenizer that loads, however damaged, encodes and decodes or says why not.
bool works_or_is_refused(const fs::path& file) {
  const std::string message = refusal([&] {
    const Tokenizer tokenizer = Tokenizer::load(file);
    const std::vector<int32_t> ids = tokenizer.encode(kSmallText);
    (void)tokenizer.encode("hello old world", false);
    (void)tokenizer.decode(ids);
    StreamDecoder stream(tokenizer);
    for (int32_t id = 0; id < std::min<int64_t>(tokenizer.vocab_size(), 100); ++id) (void)stream.push(id);
    (void)stream.finish();
  });
  EXPECT_TRUE(is_one_line(message)) << message;
  return message == "(accepted)";
}

TEST(DamagedTokenizer, CutOffAnywhereItIsRefused) {
  const MemoryFile file;
  const std::string whole = kSmall;
  EXPECT_TRUE(works_or_is_refused(file.write(whole)));
  for (size_t n = 0; n < whole.size(); ++n) EXPECT_FALSE(works_or_is_refused(file.write(whole.substr(0, n)))) << n;
}

TEST(DamagedTokenizer, WithAnyBitFlippedItWorksOrIsRefused) {
  const MemoryFile file;
  std::string text = kSmall;
  int accepted = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      text[i] = static_cast<char>(text[i] ^ 1 << bit);
      accepted += works_or_is_refused(file.write(text)) ? 1 : 0;
      text[i] = static_cast<char>(text[i] ^ 1 << bit);
    }
  }
  EXPECT_GT(accepted, 100);  // letters of tokens that the text does without
}

TEST(DamagedTokenizer, ABytesTokenizerCutOffAnywhereIsRefused) {
  const TemporaryDirectory directory;
  Tokenizer::bytes().save(directory.path());
  const std::string whole = test::slurp(directory.path() / "tokenizer.json");
  const MemoryFile file;
  for (size_t n = 0; n + 1 < whole.size(); ++n) {  // a line end follows the last brace
    EXPECT_FALSE(works_or_is_refused(file.write(whole.substr(0, n)))) << n;
  }
}

}  // namespace
}  // namespace fathom
