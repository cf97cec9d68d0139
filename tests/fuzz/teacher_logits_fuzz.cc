// Any bytes as a teacher.json: refused with one line, or within its limits, and written again it is read as the same.
#include <algorithm>

#include "base/error.h"
#include "train/teacher_logits.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  try {
    const TeacherInfo info = parse_teacher_json({reinterpret_cast<const char*>(data), size}, "teacher.json");
    FATHOM_CHECK(1 <= info.k && info.k <= std::min(info.vocab_size, kMaxTeacherTokens));
    FATHOM_CHECK(!info.temperatures.empty() && info.temperatures.size() <= kMaxTeacherTemperatures);
    FATHOM_CHECK(info.type == Format::f32 || info.type == Format::f16);
    const std::string written = teacher_json(info);
    FATHOM_CHECK(teacher_json(parse_teacher_json(written, "written")) == written);
  } catch (const Error& error) {
    FATHOM_CHECK(std::string_view(error.what()).find('\n') == std::string_view::npos, "{}", error.what());
  }
  return 0;
}
