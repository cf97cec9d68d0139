// A problem whose answer is a program. The input's first byte says what the rest is:
//   H, M, L: a line of HumanEval, MBPP or LiveCodeBench;
//   z: zlib data, k: a pickle, t: the text in a pickle, each packed from there on as LiveCodeBench's private tests are.
//
// The laws:
// 1. What is no problem is refused with one line.
// 2. A problem has tests, and says what it tests.
// 3. Tests that are packed are those that stand there as they are.
#include <zlib.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "base/error.h"
#include "eval/code_tests.h"

namespace fathom::eval {
namespace {

std::string deflated(std::string_view data) {
  uLongf size = compressBound(data.size());
  std::string out(size, '\0');
  FATHOM_CHECK(compress2(reinterpret_cast<Bytef*>(out.data()), &size, reinterpret_cast<const Bytef*>(data.data()),
                         data.size(), 1) == Z_OK);
  out.resize(size);
  return out;
}

std::string base64(std::string_view data) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  for (size_t i = 0; i < data.size(); i += 3) {
    uint32_t bits = 0;
    const size_t n = std::min<size_t>(3, data.size() - i);
    for (size_t j = 0; j < 3; ++j) bits = bits << 8 | (j < n ? static_cast<unsigned char>(data[i + j]) : 0);
    for (size_t j = 0; j < 4; ++j) out += j <= n ? kDigits[bits >> (18 - 6 * j) & 63] : '=';
  }
  return out;
}

std::string pickled(std::string_view text) {
  std::string out("\x80\x04\x95\0\0\0\0\0\0\0\0\x8d", 12);
  for (size_t i = 0; i < 8; ++i) out += static_cast<char>(uint64_t{text.size()} >> (8 * i) & 255);
  return out.append(text).append("\x94.");
}

std::string line_with(std::string_view private_tests) {
  return nlohmann::json{{"question_id", "q"},
                        {"question_content", "?"},
                        {"public_test_cases", "[]"},
                        {"private_test_cases", private_tests},
                        {"metadata", R"({"func_name": "f"})"}}
      .dump();
}

std::optional<CodeProblem> parsed(CodeProblem (*parse)(std::string_view, const std::string&), std::string_view line) {
  try {
    CodeProblem problem = parse(line, "x.jsonl: line 1");
    FATHOM_CHECK(problem.cases.empty() != problem.test_code.empty());
    for (const CodeCase& one : problem.cases) FATHOM_CHECK(one.input.size() + one.output.size() < size_t{1} << 30);
    return problem;
  } catch (const Error& error) {
    FATHOM_CHECK(std::string_view(error.what()).find('\n') == std::string_view::npos, "{}", error.what());
    return std::nullopt;
  }
}

void check_same(std::string_view text) {
  std::string plain;
  try {
    plain = line_with(text);
  } catch (const nlohmann::json::exception&) {  // no UTF-8
    return;
  }
  const auto packed = parsed(parse_livecodebench, line_with(base64(deflated(pickled(text)))));
  const size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos || text[first] != '[') return;
  const auto whole = parsed(parse_livecodebench, plain);
  FATHOM_CHECK(packed.has_value() == whole.has_value());
  if (!whole) return;
  FATHOM_CHECK(packed->kind == whole->kind && packed->cases.size() == whole->cases.size());
  for (size_t i = 0; i < whole->cases.size(); ++i) {
    FATHOM_CHECK(packed->cases[i].input == whole->cases[i].input && packed->cases[i].output == whole->cases[i].output);
  }
}

}  // namespace
}  // namespace fathom::eval

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom::eval;
  if (size == 0) return 0;
  const std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0]) {
    case 'H':
      parsed(parse_humaneval, rest);
      break;
    case 'M':
      parsed(parse_mbpp, rest);
      break;
    case 'L':
      parsed(parse_livecodebench, rest);
      break;
    case 'z':
      parsed(parse_livecodebench, line_with(base64(rest)));
      break;
    case 'k':
      parsed(parse_livecodebench, line_with(base64(deflated(rest))));
      break;
    case 't':
      check_same(rest);
      break;
    default:
      break;
  }
  return 0;
}
