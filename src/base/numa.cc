#include "base/numa.h"

#include <linux/mempolicy.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <charconv>
#include <fstream>
#include <string>

namespace fathom {
namespace {

constexpr int kMaxNodes = 1024;  // the kernel's own limit

// "0-1,4": nothing for what is not of that form.
std::vector<int> parse_list(std::string_view text) {
  std::vector<int> numbers;
  const char *at = text.data(), *const end = at + text.size();
  while (at != end) {
    int first = 0, last = 0;
    auto [next, error] = std::from_chars(at, end, first);
    last = first;
    if (error == std::errc() && next != end && *next == '-') {
      const auto range = std::from_chars(next + 1, end, last);
      next = range.ptr;
      error = range.ec;
    }
    if (error != std::errc() || first < 0 || last < first || last >= kMaxNodes) return {};
    for (int n = first; n <= last; ++n) numbers.push_back(n);
    if (next != end && *next != ',') return {};
    at = next == end ? end : next + 1;
  }
  return numbers;
}

}  // namespace

std::vector<int> memory_nodes(const std::filesystem::path& folder) {
  std::ifstream in(folder / "has_memory");
  std::string text;
  in >> text;
  return parse_list(text);
}

// System calls, since glibc has none and libnuma is not worth a dependency.
bool interleave_memory(std::span<const int> nodes) {
  int policy = 0;
  if (syscall(SYS_get_mempolicy, &policy, nullptr, 0, nullptr, 0) != 0 || policy != MPOL_DEFAULT) return false;
  constexpr int kBits = 8 * sizeof(unsigned long);  // NOLINT(google-runtime-int): the kernel's type
  unsigned long mask[kMaxNodes / kBits] = {};       // NOLINT(google-runtime-int)
  for (const int node : nodes) {
    if (node >= 0 && node < kMaxNodes) mask[node / kBits] |= 1UL << node % kBits;
  }
  return syscall(SYS_set_mempolicy, MPOL_INTERLEAVE, mask, kMaxNodes + 1) == 0;
}

}  // namespace fathom
