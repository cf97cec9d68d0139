// Errors as users see them: one line that says what, where (file, tensor, option, position) and what to do.
// Thrown anywhere, caught once in cli/main.cc. Programming errors are FATHOM_CHECK: printed, then abort.
#pragma once

#include <fmt/format.h>

#include <stdexcept>
#include <string>
#include <string_view>

namespace fathom {

// A failure of the work asked for: a bad file, a full disk. Exit code 1.
struct Error : std::runtime_error {
  explicit Error(const std::string& message) : std::runtime_error(message) {}
  template <class... Args>
  requires(sizeof...(Args) > 0) explicit Error(fmt::format_string<Args...> format, Args&&... args)
      : std::runtime_error(fmt::format(format, std::forward<Args>(args)...)) {}
};

// Wrong usage: an option that makes no sense, alone or with another. Exit code 2.
struct UsageError : Error {
  using Error::Error;
};

// What work() returns. Its Error gets `where` (a file, "standard input: line 3") before the message.
template <class Work>
auto errors_at(std::string_view where, const Work& work) {
  try {
    return work();
  } catch (const Error& error) {
    throw Error("{}: {}", where, error.what());
  }
}

// `text` from an untrusted file made fit for one line of a terminal: control bytes and invalid UTF-8 become \xNN,
// and more than max_bytes become "...".
std::string printable(std::string_view text, size_t max_bytes = 200);

[[noreturn]] void check_failed(const char* condition, const char* file, int line, const std::string& detail);

}  // namespace fathom

// Kept in release builds. The optional arguments are a format string and its values.
#define FATHOM_CHECK(condition, ...)                                                       \
  do {                                                                                     \
    if (!(condition)) [[unlikely]]                                                         \
      ::fathom::check_failed(#condition, __FILE__, __LINE__, fmt::format("" __VA_ARGS__)); \
  } while (false)
