// Any bytes as a line of chat data, told by a template of the family: refused with one line, or encoded so that what is
// learned lies where it should. The first byte chooses the template, and what the options say.
#include <array>
#include <fstream>
#include <iterator>

#include "base/error.h"
#include "tune/conversation.h"

namespace {

using namespace fathom;

std::string slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Tokenizer tokenizer = Tokenizer::load(FATHOM_TEST_DATA "/text/tiny");
  static const auto templates = [] {
    std::array<std::string, 7> all{std::string(kDeepseekV32Encoding)};
    for (size_t i = 1; const char* name :
                       {"deepseek-v2", "deepseek-v3", "deepseek-r1", "deepseek-v3.1", "deepseek-v3.2", "kimi-k2"}) {
      all[i++] = slurp(FATHOM_TEST_DATA "/chat/" + std::string(name) + ".jinja");
    }
    return all;
  }();
  if (size == 0) return 0;
  const int32_t eos = tokenizer.eos_id();
  tune::ConversationTemplate with{templates[data[0] % templates.size()], {}, {eos}, {}, data[0] >= 128};
  if (const int choice = data[0] / 8 % 3; choice > 0) with.thinking = choice == 1;
  with.chat.bos_token = tokenizer.token_bytes(tokenizer.bos_id());
  with.chat.eos_token = tokenizer.token_bytes(eos);
  try {
    const std::string_view line(reinterpret_cast<const char*>(data) + 1, size - 1);
    const tune::TrainingConversation conversation = tune::parse_conversation(line, "line 1");
    FATHOM_CHECK(conversation.trained.size() == conversation.messages.size());
    for (const tune::TrainingSequence& sequence : tune::encode_conversation(tokenizer, with, conversation)) {
      int64_t at = 0;
      for (const auto& [begin, end] : sequence.spans) {
        FATHOM_CHECK(at <= begin && begin < end && end <= std::ssize(sequence.ids));
        for (int64_t i = begin; i < end; ++i) {
          FATHOM_CHECK((sequence.ids[static_cast<size_t>(i)] == eos) == (i + 1 == end));
        }
        at = end;
      }
      FATHOM_CHECK(!sequence.spans.empty() && at == std::ssize(sequence.ids));
    }
  } catch (const Error& error) {
    FATHOM_CHECK(std::string_view(error.what()).find('\n') == std::string_view::npos, "{}", error.what());
  }
  return 0;
}
