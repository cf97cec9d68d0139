#include "eval/answers.h"

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "base/utf8.h"
#include "eval/math_compare.h"
#include "eval/math_parser.h"
#include "eval/task_files.h"

namespace fathom::eval {
namespace {

constexpr size_t kNone = std::string_view::npos, kMostBytes = 10'000;
constexpr int64_t kMostSteps = 60'000;

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool is_digit(char c) { return '0' <= c && c <= '9'; }
char lower(char c) { return 'A' <= c && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }
bool is_letter(char c) { return 'a' <= lower(c) && lower(c) <= 'z'; }

// What stands in the braces that begin at text[at], or nothing where they do not end.
std::optional<std::string_view> in_braces(std::string_view text, size_t at) {
  int open = 0;
  for (size_t i = at; i < text.size(); ++i) {
    if (text[i] == '\\') {
      ++i;
    } else if (text[i] == '{') {
      ++open;
    } else if (text[i] == '}' && --open == 0) {
      return text.substr(at + 1, i - at - 1);
    }
  }
  return std::nullopt;
}

// Of the last box that ends and is not empty. `\boxed 5` ends at a space or a dollar sign.
std::optional<std::string_view> boxed(std::string_view text) {
  int boxes_left = 100;  // each may have to be read to the end
  for (size_t end = text.size(); boxes_left-- > 0;) {
    const size_t box = text.rfind("\\boxed", end), frame = text.rfind("\\fbox", end);
    if (box == kNone && frame == kNone) return std::nullopt;
    const bool is_frame = box == kNone || (frame != kNone && frame > box);
    const size_t found = is_frame ? frame : box;
    size_t at = found + (is_frame ? 5 : 6);
    const bool spaced = at < text.size() && text[at] == ' ';
    while (at < text.size() && text[at] == ' ') ++at;
    if (at < text.size() && text[at] == '{') {
      const auto inside = in_braces(text, at);
      if (inside && !stripped(*inside).empty()) return stripped(*inside);
    } else if (spaced) {
      const std::string_view rest = text.substr(at, text.find_first_of("$ \n", at) - at);
      if (!stripped(rest).empty()) return stripped(rest);
    }
    if (found == 0) return std::nullopt;
    end = found - 1;
  }
  return std::nullopt;
}

// The line behind the last "####".
std::optional<std::string_view> behind_hashes(std::string_view text) {
  const size_t at = text.rfind("####");
  if (at == kNone) return std::nullopt;
  const std::string_view line = stripped(text.substr(at + 4, text.find('\n', at) - at - 4));
  return line.empty() ? std::nullopt : std::optional(line);
}

// Without what Markdown and sentences put around an answer.
std::string_view bare(std::string_view text) {
  for (bool more = true; std::exchange(more, false);) {
    text = stripped(text);
    for (const std::string_view mark : {"**", "__", "`", "\"", ":"}) {
      if (text.starts_with(mark)) {
        text.remove_prefix(mark.size());
        more = true;
      }
      if (text.ends_with(mark)) {
        text.remove_suffix(mark.size());
        more = true;
      }
    }
    if (text.ends_with('.') || text.ends_with(',')) {
      text.remove_suffix(1);
      more = true;
    }
  }
  return text;
}

// Behind the last "answer is" or "Answer:", to the end of the sentence.
std::optional<std::string_view> behind_phrase(std::string_view text) {
  const std::string words = lowered(text);
  size_t begin = kNone, found = 0;
  for (const std::string_view phrase : {"answer is", "answer:", "answer**:", "answer:**", "answer ="}) {
    const size_t at = words.rfind(phrase);
    if (at == kNone || (begin != kNone && at < found)) continue;
    found = at;
    begin = at + phrase.size();
  }
  if (begin == kNone) return std::nullopt;
  while (begin < text.size() && (is_space(text[begin]) || text[begin] == ':' || text[begin] == '*')) ++begin;
  std::string_view rest = text.substr(begin, text.find('\n', begin) - begin);
  for (const auto& [open, close] :
       {std::pair<std::string_view, std::string_view>{"$$", "$$"}, {"\\(", "\\)"}, {"\\[", "\\]"}}) {
    if (!rest.starts_with(open)) continue;
    const size_t end = rest.find(close, open.size());
    if (end != kNone && !stripped(rest.substr(open.size(), end - open.size())).empty()) {
      return stripped(rest.substr(open.size(), end - open.size()));
    }
  }
  const size_t dollar = rest.find('$', 1);
  if (rest.starts_with('$') && dollar != kNone && !stripped(rest.substr(1, dollar - 1)).empty()) {
    return stripped(rest.substr(1, dollar - 1));
  }
  for (size_t i = 0; i + 1 < rest.size(); ++i) {
    const bool ends = (rest[i] == '.' || rest[i] == ';') && is_space(rest[i + 1]);
    if (ends) rest = rest.substr(0, i);
  }
  for (const std::string_view word : {" because", " since ", " as ", ", because", ", since", ", so "})
    rest = rest.substr(0, rest.find(word));
  rest = bare(rest);
  return rest.find_first_not_of("$ ") == kNone ? std::nullopt : std::optional(rest);
}

struct Span {
  size_t begin, end;
};

// The numbers in a text as they are written: sign, commas, point.
std::vector<Span> numbers(std::string_view text) {
  std::vector<Span> out;
  for (size_t i = 0; i < text.size();) {
    const bool point = text[i] == '.' && i + 1 < text.size() && is_digit(text[i + 1]);
    if (!is_digit(text[i]) && !point) {
      ++i;
      continue;
    }
    size_t begin = i;
    while (i < text.size() &&
           (is_digit(text[i]) || ((text[i] == ',' || text[i] == '.') && i + 1 < text.size() && is_digit(text[i + 1]))))
      ++i;
    size_t sign = begin;
    while (sign > 0 && (text[sign - 1] == '$' || text[sign - 1] == '\\')) --sign;
    const bool minus =
        sign > 0 && text[sign - 1] == '-' &&
        (sign == 1 || (!is_digit(text[sign - 2]) && !is_letter(text[sign - 2]) && text[sign - 2] != ')'));
    if (minus) begin = sign - 1;
    out.push_back({begin, i});
  }
  return out;
}

// The letter that an answer is, or begins with: "B", "(B)", "\text{(B) } 12", "B. Paris".
std::optional<char> choice_of(std::string_view text) {
  text = stripped(text);
  for (const std::string_view command : {"\\text", "\\textbf", "\\mathrm", "\\mathbf", "\\mbox", "\\textrm"}) {
    if (text.starts_with(command) && text.substr(command.size()).starts_with('{')) {
      text = stripped(text.substr(command.size() + 1));
      break;
    }
  }
  while (!text.empty() && (text[0] == '(' || text[0] == '*' || text[0] == '[' || text[0] == '$' || text[0] == '{'))
    text.remove_prefix(1);
  if (text.empty() || text[0] < 'A' || text[0] > 'J') return std::nullopt;
  const std::string_view rest = text.substr(1);
  const bool alone = rest.empty() || std::string_view(")}].:,*$\n").find(rest[0]) != kNone;
  return alone ? std::optional(text[0]) : std::nullopt;
}

// The last capital A to J with no letter beside it; "A" and "I" are words too where a small letter follows.
std::optional<char> last_choice(std::string_view text) {
  for (size_t i = text.size(); i-- > 0;) {
    if (text[i] < 'A' || text[i] > 'J') continue;
    const auto joined = [](char c) {
      return is_letter(c) || is_digit(c) || c == '\'' || (static_cast<unsigned char>(c) & 0x80) != 0;
    };
    if ((i > 0 && joined(text[i - 1])) || (i + 1 < text.size() && joined(text[i + 1]))) continue;
    const bool word =
        (text[i] == 'A' || text[i] == 'I') && i + 2 < text.size() && text[i + 1] == ' ' && is_letter(text[i + 2]);
    if (!word) return text[i];
  }
  return std::nullopt;
}

// The text itself, without what LaTeX and sentences have for looks.
std::string plain(std::string_view text) {
  std::string out;
  static constexpr std::array<std::string_view, 9> kCommands = {
      "\\left", "\\right", "\\text", "\\mbox", "\\textbf", "\\mathrm", "\\displaystyle", "\\textrm", "\\dfrac"};
  bool space = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (is_space(c) || c == '$' || c == '~') {
      space = true;
      continue;
    }
    if (c == '\\' && i + 1 < text.size()) {
      const std::string_view rest = text.substr(i);
      if (std::string_view("!,;: ").find(text[i + 1]) != kNone) {
        ++i;
        continue;
      }
      const auto command = std::ranges::find_if(kCommands, [&](std::string_view name) {
        return rest.starts_with(name) && (rest.size() == name.size() || !is_letter(rest[name.size()]));
      });
      if (command != kCommands.end()) {
        i += command->size() - 1;
        if (*command == "\\dfrac") out += "\\frac";
        continue;
      }
      out += c;
      out += text[++i];
      space = false;
      continue;
    }
    // "1 2" is not 12, nor "a b" the word "ab".
    const char before = out.empty() ? '\0' : out.back();
    if (space && ((is_digit(c) && is_digit(before)) || (is_letter(c) && is_letter(before)))) out += ' ';
    space = false;
    out += c;
  }
  while (out.ends_with('.') && out.size() > 1) out.pop_back();
  while (out.size() > 2 && out.starts_with('{') &&
         in_braces(out, 0) == std::string_view(out).substr(1, out.size() - 2)) {
    out = out.substr(1, out.size() - 2);
  }
  return out;
}

// The letters, digits and signs that a text of words has; empty where it has no word.
std::string words(const std::string& text) {
  std::string out;
  int run = 0, longest = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == '\\') return {};  // mathematics
    const bool byte = (static_cast<unsigned char>(c) & 0x80) != 0;
    run = is_letter(c) || byte ? run + 1 : 0;
    longest = std::max(longest, run);
    if (std::string_view(" {}\"'`*").find(c) != kNone) continue;
    const bool point = c == '.' && !(i + 1 < text.size() && is_digit(text[i + 1]));
    if (!point) out += lower(c);
  }
  return longest >= 2 ? out : std::string();
}

// "9 a.m." and "9:00 AM" as "9:00am".
std::optional<std::string> time_of_day(const std::string& text) {
  std::string all;
  for (const char c : text) {
    if (std::string_view(" .{}").find(c) == kNone) all += lower(c);
  }
  if (all.size() < 3 || (!all.ends_with("am") && !all.ends_with("pm"))) return std::nullopt;
  const std::string clock = all.substr(0, all.size() - 2);
  const size_t colon = clock.find(':');
  const std::string hours = clock.substr(0, colon), minutes = colon == kNone ? "00" : clock.substr(colon + 1);
  const auto digits = [](std::string_view t, size_t most) {
    return !t.empty() && t.size() <= most && std::ranges::all_of(t, is_digit);
  };
  if (!digits(hours, 2) || !digits(minutes, 2) || minutes.size() != 2) return std::nullopt;
  return (hours.starts_with('0') ? hours.substr(1) : hours) + ":" + minutes + all.substr(all.size() - 2);
}

// Full-width forms (U+FF01 to U+FF5E) as the ASCII that they are.
std::string half_width(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const std::string_view rest = text.substr(i, 3);
    const auto last = rest.size() == 3 ? static_cast<unsigned char>(rest[2]) : 0;
    const bool first_half = rest.starts_with("\xEF\xBC") && last >= 0x81 && last <= 0xBF,
               second_half = rest.starts_with("\xEF\xBD") && last >= 0x80 && last <= 0x9E;
    if (first_half || second_half) {
      out += static_cast<char>(last - 0x80 + (first_half ? 0x20 : 0x60));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

// Without "\text{The answer is}" in front.
std::string_view without_phrase(std::string_view text) {
  if (!text.starts_with("\\text{")) return text;
  const auto inside = in_braces(text, 5);
  if (!inside) return text;
  std::string phrase = lowered(stripped(*inside));
  if (phrase.ends_with(':')) phrase.pop_back();
  for (const std::string_view known : {"the answer is", "answer is", "the final answer is", "answer", "final answer"}) {
    if (phrase == known) return stripped(text.substr(inside->size() + 7));
  }
  return text;
}

std::string_view unwrapped(std::string_view text) {
  text = stripped(text);
  for (int i = 0; i < 4; ++i) {
    if (text.starts_with("**") && text.ends_with("**") && text.size() > 4)
      text = stripped(text.substr(2, text.size() - 4));
    for (const std::string_view box : {"\\boxed", "\\fbox"}) {
      if (!text.starts_with(box) || !text.substr(box.size()).starts_with('{') || !text.ends_with('}')) continue;
      const auto inside = in_braces(text, box.size());
      if (inside && inside->size() + box.size() + 2 == text.size()) text = stripped(*inside);
    }
  }
  return without_phrase(text);
}

}  // namespace

std::optional<std::string> final_answer(std::string_view solution) {
  constexpr std::string_view kThink = "<think>", kEndThink = "</think>";
  if (const size_t end = solution.rfind(kEndThink); end != kNone) {
    solution.remove_prefix(end + kEndThink.size());
  } else if (stripped(solution).starts_with(kThink)) {
    return std::nullopt;
  }
  const auto box = boxed(solution), hashes = behind_hashes(solution), phrase = behind_phrase(solution);
  for (const auto& found : {box, hashes, phrase}) {
    if (found) return std::string(*found);
  }
  const std::vector<Span> found = numbers(solution);
  if (found.empty()) return std::nullopt;
  Span last = found.back();
  if (found.size() > 1 && last.begin > 0 && solution[last.begin - 1] == '/' && found.end()[-2].end + 1 == last.begin) {
    last.begin = found.end()[-2].begin;  // "3/4"
  }
  std::string out(solution.substr(last.begin, last.end - last.begin));
  std::erase(out, '\\');
  std::erase(out, '$');
  return out;
}

std::string expected_answer(std::string_view text) {
  const bool is_solution = text.find("\\boxed") != kNone || text.find("####") != kNone;
  return is_solution ? final_answer(text).value_or(std::string(text)) : std::string(text);
}

bool same_answer(std::string_view given_text, std::string_view expected_text) {
  const std::string half_width_given = half_width(given_text), half_width_expected = half_width(expected_text);
  const std::string_view given = unwrapped(half_width_given), expected = unwrapped(half_width_expected);
  if (given.empty() || expected.empty()) return false;
  if (given == expected) return true;
  if (given.size() > kMostBytes || expected.size() > kMostBytes) return false;
  const std::string a = plain(given), b = plain(expected);
  if (a == b && !a.empty()) return true;
  const auto time = time_of_day(a), expected_time = time_of_day(b);
  if (time && expected_time) return *time == *expected_time;
  // "(B) 12" and "B. Paris" choose B.
  if (b.size() <= 3 && choice_of(b) && last_choice(b) && words(b).empty()) {
    const auto letter = choice_of(a);
    const bool behind = letter && a.find_first_of(").:") != kNone && !last_choice(a.substr(a.find_first_of(").:")));
    if (behind) return *letter == *choice_of(b);
  }
  const auto x = parse_math(given), y = parse_math(expected);
  if (x && y) {
    Work work{kMostSteps};
    try {
      if (same_math(*x, *y, work)) return true;
    } catch (const OutOfWork&) {
      return false;
    }
  }
  const std::string ours = words(a), theirs = words(b);
  return !ours.empty() && ours == theirs;
}

}  // namespace fathom::eval
