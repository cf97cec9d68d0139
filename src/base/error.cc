#include "base/error.h"

#include <cstdio>
#include <cstdlib>

#include "base/utf8.h"

namespace fathom {

std::string printable(std::string_view text, size_t max_bytes) {
  std::string out;
  while (!text.empty()) {
    if (out.size() >= max_bytes) return out + "...";
    const Utf8Unit unit = utf8_unit(text);
    const size_t n = unit.valid ? unit.bytes : 0;
    const auto byte = static_cast<unsigned char>(text[0]);
    // C1 controls (U+0080..U+009F) steer terminals as much as C0 ones do.
    const bool control =
        byte < 0x20 || byte == 0x7F || (n == 2 && byte == 0xC2 && static_cast<unsigned char>(text[1]) < 0xA0);
    if (n == 0 || control) {
      out += fmt::format("\\x{:02x}", byte);
      text.remove_prefix(1);
    } else {
      out += text.substr(0, n);
      text.remove_prefix(n);
    }
  }
  return out;
}

void check_failed(const char* condition, const char* file, int line, const std::string& detail) {
  fmt::print(stderr, "fathom: bug at {}:{}: {}{}{}\n", file, line, condition, detail.empty() ? "" : ": ", detail);
  std::fflush(stderr);
  std::abort();
}

}  // namespace fathom
