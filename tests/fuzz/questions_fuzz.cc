// A file of questions, as every task that reads one takes it: an object a line, or one list.
//
// The law: it is refused with one line, or its questions have a text to ask, and those of "questions" an id of their
// own.
#include <sys/mman.h>
#include <unistd.h>

#include <set>

#include "base/error.h"
#include "eval/tasks.h"

namespace fathom::eval {
namespace {

// A file in memory, and its name.
std::filesystem::path file_of(const uint8_t* data, size_t size) {
  static const int fd = memfd_create("questions", 0);
  FATHOM_CHECK(fd >= 0 && ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == static_cast<ssize_t>(size));
  return fmt::format("/proc/self/fd/{}", fd);
}

}  // namespace
}  // namespace fathom::eval

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom;
  using namespace fathom::eval;
  const std::filesystem::path path = file_of(data, size);
  for (const auto read : {read_questions, read_math500, read_aime24, read_gsm8k}) {
    try {
      std::set<std::string> ids;
      for (const Item& item : read({.data = path, .chats = true})) {
        FATHOM_CHECK(read != read_questions || ids.insert(item.id).second, "{}", printable(item.id));
        FATHOM_CHECK(read == read_questions || !item.prompt.empty());
      }
    } catch (const Error& error) {
      FATHOM_CHECK(std::string_view(error.what()).find('\n') == std::string_view::npos, "{}", error.what());
    }
  }
  return 0;
}
