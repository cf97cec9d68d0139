// The published files of code_tests.h.
#include <zlib.h>

#include <algorithm>
#include <array>
#include <optional>

#include "base/error.h"
#include "base/json.h"
#include "eval/code_tests.h"
#include "eval/task_files.h"
#include "text/unpacking.h"

namespace fathom::eval {
namespace {

constexpr size_t kMaxLineBytes = size_t{512} << 20;  // LiveCodeBench's longest have more than 100 MB
constexpr size_t kMaxCases = 10'000;

// In whose names its programs run.
constexpr std::string_view kLiveCodeBenchImports = R"(from string import *
from re import *
from datetime import *
from collections import *
from heapq import *
from bisect import *
from copy import *
from math import *
from random import *
from statistics import *
from itertools import *
from functools import *
from operator import *
from io import *
from sys import *
from json import *
from builtins import *
from typing import *
import string
import re
import datetime
import collections
import heapq
import bisect
import copy
import math
import random
import statistics
import itertools
import functools
import operator
import io
import sys
import json
sys.setrecursionlimit(50000)
)";

class Fields {
 public:
  Fields(simdjson::dom::element element, const std::string& where) : where_(where) {
    if (element.get_object().get(object_) != simdjson::SUCCESS) throw Error("{}: must be an object", where);
  }
  bool has(std::string_view name) const { return object_.at_key(name).error() == simdjson::SUCCESS; }
  simdjson::dom::element at(std::string_view name) const {
    simdjson::dom::element value;
    if (object_.at_key(name).get(value) != simdjson::SUCCESS) throw Error("{}: \"{}\" is missing", where_, name);
    return value;
  }
  std::string text(std::string_view name) const {
    std::string_view value;
    if (at(name).get_string().get(value) != simdjson::SUCCESS) throw Error("{}: \"{}\" must be a string", where_, name);
    return std::string(value);
  }
  // Empty where it is missing.
  std::vector<std::string> texts(std::string_view name) const {
    std::vector<std::string> out;
    if (!has(name)) return out;
    simdjson::dom::array values;
    bool right = at(name).get_array().get(values) == simdjson::SUCCESS;
    if (right) {
      for (const simdjson::dom::element value : values) {
        std::string_view text;
        right = right && value.get_string().get(text) == simdjson::SUCCESS;
        out.emplace_back(text);
      }
    }
    if (!right) throw Error("{}: \"{}\" must be a list of strings", where_, name);
    return out;
  }
  std::string id(std::string_view name) const {
    if (int64_t number = 0; at(name).get_int64().get(number) == simdjson::SUCCESS) return std::to_string(number);
    return text(name);
  }

 private:
  const std::string& where_;
  simdjson::dom::object object_;
};

// The names behind "def " at the beginnings of lines.
std::vector<std::string> defined_functions(std::string_view code) {
  std::vector<std::string> names;
  for (size_t at = 0; at < code.size();) {
    const size_t end = std::min(code.find('\n', at), code.size());
    std::string_view line = code.substr(at, end - at);
    if (line.starts_with("def ")) {
      line.remove_prefix(4);
      while (line.starts_with(' ')) line.remove_prefix(1);
      names.emplace_back(line.substr(0, std::find_if_not(line.begin(), line.end(), is_word) - line.begin()));
    }
    at = end + 1;
  }
  return names;
}

bool calls(std::string_view test, std::string_view name) {
  for (size_t at = test.find(name); at != std::string_view::npos; at = test.find(name, at + 1)) {
    if (at > 0 && is_word(test[at - 1])) continue;
    size_t behind = at + name.size();
    while (behind < test.size() && test[behind] == ' ') ++behind;
    if (behind < test.size() && test[behind] == '(') return true;
  }
  return false;
}

// Which function the tests of MBPP call: the last that the reference defines, or the first word before a parenthesis.
std::string tested_function(std::string_view code, std::string_view test) {
  std::string found;
  for (const std::string& name : defined_functions(code)) {
    if (calls(test, name)) found = name;
  }
  if (!found.empty()) return found;
  for (size_t at = 0; at < test.size(); ++at) {
    if (!is_word(test[at]) || (at > 0 && is_word(test[at - 1]))) continue;
    size_t end = at;
    while (end < test.size() && is_word(test[end])) ++end;
    const std::string_view word = test.substr(at, end - at);
    if (end < test.size() && test[end] == '(' && word != "assert" && word != "not" && word != "set" &&
        word != "sorted" && word != "math") {
      return std::string(word);
    }
  }
  return found;
}

std::string without_returns(std::string text) {
  std::erase(text, '\r');
  return text;
}

std::string from_base64(std::string_view text, const std::string& where) {
  static const std::array<int, 256> values = [] {
    std::array<int, 256> out{};
    out.fill(-1);
    constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t i = 0; i < kDigits.size(); ++i) out[static_cast<unsigned char>(kDigits[i])] = static_cast<int>(i);
    return out;
  }();
  while (text.ends_with('=')) text.remove_suffix(1);
  std::string out;
  out.reserve(text.size() / 4 * 3 + 3);
  uint32_t bits = 0;
  int n_bits = 0;
  for (const char c : text) {
    const int value = values[static_cast<unsigned char>(c)];
    if (value < 0) throw Error("{}: neither JSON nor base64", where);
    bits = bits << 6 | static_cast<uint32_t>(value);
    n_bits += 6;
    if (n_bits >= 8) out.push_back(static_cast<char>(bits >> (n_bits -= 8)));
  }
  return out;
}

std::string inflated(std::string_view packed, const std::string& where) {
  z_stream stream{};
  if (inflateInit(&stream) != Z_OK) throw Error("{}: zlib does not start", where);
  struct End {
    z_stream& stream;
    ~End() { inflateEnd(&stream); }
  } const end{stream};
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data()));
  stream.avail_in = static_cast<uInt>(packed.size());  // less than kMaxLineBytes
  std::string out;
  int state = Z_OK;
  while (state == Z_OK) {
    const size_t done = out.size();
    out.resize(done + (size_t{1} << 20));
    stream.next_out = reinterpret_cast<Bytef*>(out.data() + done);
    stream.avail_out = 1 << 20;
    state = inflate(&stream, Z_NO_FLUSH);
    out.resize(out.size() - stream.avail_out);
    if (out.size() > kMaxLineBytes) throw Error("{}: unpacks to more than {} MiB", where, kMaxLineBytes >> 20);
  }
  if (state != Z_STREAM_END) throw Error("{}: damaged zlib data", where);
  return out;
}

// The string that a pickle is, if it is one and nothing else: its opcodes are read, none is executed.
std::string pickled_text(std::string_view pickle, const std::string& where) {
  const auto refuse = [&where]() -> Error { return Error("{}: a pickle of something else than one string", where); };
  const auto take = [&](uint64_t n) {
    if (n > pickle.size()) throw refuse();
    const std::string_view piece = pickle.substr(0, static_cast<size_t>(n));
    pickle.remove_prefix(static_cast<size_t>(n));
    return piece;
  };
  const auto number = [&](size_t n_bytes) {
    uint64_t value = 0;
    const std::string_view bytes = take(n_bytes);
    for (size_t i = n_bytes; i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[i]);
    return value;
  };
  std::optional<std::string> text;
  const auto keep = [&](uint64_t n) {
    if (text) throw refuse();
    text = std::string(take(n));
  };
  for (;;) {
    switch (static_cast<unsigned char>(take(1)[0])) {
      case 0x80:  // PROTO
        take(1);
        break;
      case 0x95:  // FRAME
        take(8);
        break;
      case 'X':  // BINUNICODE
        keep(number(4));
        break;
      case 0x8c:  // SHORT_BINUNICODE
        keep(number(1));
        break;
      case 0x8d:  // BINUNICODE8
        keep(number(8));
        break;
      case 0x94:  // MEMOIZE
        break;
      case 'q':  // BINPUT
        take(1);
        break;
      case 'r':  // LONG_BINPUT
        take(4);
        break;
      case '.':  // STOP
        if (!text || !pickle.empty()) throw refuse();
        return std::move(*text);
      default:
        throw refuse();
    }
  }
}

// Tests of LiveCodeBench: a text of JSON. Functional or not, by the first.
void read_cases(CodeProblem& problem, const std::string& text, const std::string& where) {
  const JsonDocument document = JsonDocument::parse(text, where);
  simdjson::dom::array tests;
  if (document.root().get_array().get(tests) != simdjson::SUCCESS) throw Error("{}: must be a list", where);
  for (const simdjson::dom::element test : tests) {
    const Fields fields(test, where);
    const std::string type = fields.text("testtype");
    if (type != "stdin" && type != "functional") throw Error("{}: unknown testtype \"{}\"", where, printable(type));
    const CodeProblem::Kind kind = type == "stdin" ? CodeProblem::standard_input : CodeProblem::function;
    if (!problem.cases.empty() && kind != problem.kind) throw Error("{}: tests of both kinds", where);
    if (problem.cases.size() == kMaxCases) throw Error("{}: more than {} tests", where, kMaxCases);
    problem.kind = kind;
    problem.cases.push_back({fields.text("input"), fields.text("output")});
  }
}

}  // namespace

CodeProblem parse_humaneval(std::string_view line, const std::string& where) {
  const JsonDocument document = JsonDocument::parse(line, where);
  const Fields fields(document.root(), where);
  CodeProblem problem{.id = fields.text("task_id"),
                      .program_prefix = fields.text("prompt"),
                      .entry_point = fields.text("entry_point"),
                      .continues_prefix = true};
  problem.test_code = fmt::format("{}\n\ncheck({})\n", fields.text("test"), problem.entry_point);
  if (fields.has("canonical_solution")) problem.solution = fields.text("canonical_solution");
  return problem;
}

CodeProblem parse_mbpp(std::string_view line, const std::string& where) {
  const JsonDocument document = JsonDocument::parse(line, where);
  const Fields fields(document.root(), where);
  CodeProblem problem{.id = fields.id("task_id"), .text = fields.text(fields.has("text") ? "text" : "prompt")};
  if (fields.has("code")) problem.solution = without_returns(fields.text("code"));
  for (const std::string& import : fields.texts("test_imports")) problem.test_code += import + "\n";
  if (fields.has("test_setup_code")) problem.test_code += without_returns(fields.text("test_setup_code")) + "\n";
  problem.shown_tests = fields.texts("test_list");
  if (problem.shown_tests.empty()) throw Error("{}: \"test_list\" has no tests", where);
  std::vector<std::string> tests = problem.shown_tests;
  for (std::string& test : fields.texts("challenge_test_list")) tests.push_back(std::move(test));
  for (const std::string& test : tests) problem.test_code += without_returns(test) + "\n";
  problem.entry_point = tested_function(problem.solution, problem.shown_tests[0]);
  return problem;
}

CodeProblem parse_livecodebench(std::string_view line, const std::string& where) {
  const JsonDocument document = JsonDocument::parse(line, where);
  const Fields fields(document.root(), where);
  CodeProblem problem{.id = fields.id("question_id"),
                      .text = fields.text("question_content"),
                      .program_prefix = std::string(kLiveCodeBenchImports)};
  if (fields.has("starter_code")) problem.starter_code = fields.text("starter_code");
  read_cases(problem, fields.text("public_test_cases"), where + ": public_test_cases");
  if (fields.has("private_test_cases")) {
    const std::string place = where + ": private_test_cases";
    std::string tests = fields.text("private_test_cases");
    const size_t first = tests.find_first_not_of(" \t\r\n");
    if (first != std::string::npos && tests[first] != '[')
      tests = pickled_text(inflated(from_base64(tests, place), place), place);
    if (first != std::string::npos) read_cases(problem, tests, place);
  }
  if (problem.cases.empty()) throw Error("{}: no tests", where);
  if (problem.kind == CodeProblem::function) {
    const std::string place = where + ": metadata";
    const std::string text = fields.text("metadata");
    const JsonDocument metadata = JsonDocument::parse(text, place);
    problem.entry_point = Fields(metadata.root(), place).text("func_name");
  }
  return problem;
}

std::vector<CodeProblem> read_code_problems(const std::filesystem::path& path,
                                            CodeProblem (*parse)(std::string_view line, const std::string& where)) {
  UnpackedFile file(path);
  std::vector<CodeProblem> problems;
  std::string rest, piece(size_t{1} << 20, '\0');
  int64_t n_lines = 0;
  const auto take = [&](std::string_view line) {
    ++n_lines;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) return;
    problems.push_back(parse(line, fmt::format("{}: line {}", path.string(), n_lines)));
  };
  for (size_t n = piece.size(); n == piece.size();) {
    n = file.read(piece.data(), piece.size());
    const size_t searched = rest.size();
    rest.append(piece, 0, n);
    size_t begin = 0;
    for (size_t end; (end = rest.find('\n', std::max(begin, searched))) != std::string::npos; begin = end + 1) {
      take(std::string_view(rest).substr(begin, end - begin));
    }
    rest.erase(0, begin);
    if (rest.size() > kMaxLineBytes)
      throw Error("{}: line {} has more than {} MiB", path.string(), n_lines + 1, kMaxLineBytes >> 20);
  }
  if (!rest.empty()) take(rest);
  if (problems.empty()) throw Error("{}: no problems", path.string());
  return problems;
}

}  // namespace fathom::eval
