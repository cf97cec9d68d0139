// Any bytes as what stands behind the first line of a traces' journal: refused with one line, or answers to what was
// asked, and the same ones when the file is opened again, without what a kill left of its last line.
#include "base/error.h"
#include "base/terminal.h"
#include "temporary_directory.h"
#include "tune/trace_journal.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  constexpr size_t kQuestions = 3;
  constexpr int64_t kSamples = 4;
  const std::string settings = R"({"format":"fathom-traces"})";
  static const test::TemporaryDirectory folder;
  set_quiet(true);
  const std::string text(reinterpret_cast<const char*>(data), size);
  const std::filesystem::path path = folder.write("t.answers", settings + "\n" + text);
  try {
    const auto read = [&] {
      const tune::TraceJournal journal(path, settings, kQuestions, kSamples);
      std::string all;
      for (const auto& [key, a] : journal.answers()) {
        FATHOM_CHECK(key.first < kQuestions && 0 <= key.second && key.second < kSamples);
        all += fmt::format("{} {} {} {} {} {} {} {};", key.first, key.second, a.answer.text, a.answer.reasoning,
                           a.answer.error, a.answer.tokens, a.verdict.has_value(), a.verdict ? a.verdict->why : "");
      }
      return all;
    };
    const std::string first = read();
    FATHOM_CHECK(std::filesystem::file_size(path) == settings.size() + 1 + text.rfind('\n') + 1);
    FATHOM_CHECK(read() == first);
  } catch (const Error& error) {
    FATHOM_CHECK(std::string_view(error.what()).find('\n') == std::string_view::npos, "{}", error.what());
  }
  return 0;
}
