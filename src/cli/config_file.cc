#include "cli/config_file.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <set>

#include "base/error.h"
#include "base/utf8.h"

namespace fathom::cli {
namespace {

constexpr size_t kMaxConfigBytes = 1 << 20;

bool is_key_character(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_';
}

const CLI::App* find_subcommand(const CLI::App& app, const std::string& name) {
  const auto found = app.get_subcommands([&](const CLI::App* command) { return command->get_name() == name; });
  return found.empty() ? nullptr : found.front();
}

class Reader {
 public:
  Reader(std::string text, std::string file, const CLI::App& app)
      : text_(std::move(text)), file_(std::move(file)), app_(app) {}

  std::vector<CLI::ConfigItem> read() {
    std::string section;
    for (skip_blank_lines(); !at_end(); skip_blank_lines()) {
      if (accept('[')) {
        if (peek() == '[') fail("tables of tables ([[...]]) are not used here");
        skip_spaces();
        section = key();
        skip_spaces();
        if (!accept(']')) fail("']' is missing");
        if (find_subcommand(app_, section) == nullptr) fail("there is no subcommand '{}'", section);
        if (!sections_.insert(section).second) fail("section [{}] stands twice", section);
      } else {
        items_.push_back(item(section));
      }
      end_of_line();
    }
    return std::move(items_);
  }

 private:
  CLI::ConfigItem item(const std::string& section) {
    CLI::ConfigItem item;
    item.name = key();
    item.parents = owner(section, item.name);
    if (!keys_.insert(item.fullname()).second) fail("'{}' stands twice", item.name);
    skip_spaces();
    if (!accept('=')) fail("'=' is missing behind '{}'", item.name);
    skip_spaces();
    if (accept('[')) {
      for (skip_blank_lines(); !accept(']'); skip_blank_lines()) {
        item.inputs.push_back(value());
        skip_blank_lines();
        if (!accept(',') && peek() != ']') fail("',' or ']' is missing in the list of '{}'", item.name);
      }
      if (item.inputs.empty()) fail("the list of '{}' is empty", item.name);
    } else {
      item.inputs.push_back(value());
    }
    return item;
  }

  // The subcommand whose option `name` is, as CLI11 wants it: empty for the program itself.
  std::vector<std::string> owner(const std::string& section, const std::string& name) const {
    const auto has = [&](const CLI::App& app) {
      const CLI::Option* option = app.get_option_no_throw("--" + name);
      return option != nullptr && option->get_configurable();
    };
    if (section.empty() && has(app_)) return {};
    if (!section.empty()) {
      if (has(*find_subcommand(app_, section))) return {section};
      fail("'{}' is no option of fathom {} (see fathom {} --help)", name, section, section);
    }
    const auto chosen = app_.get_subcommands();
    if (chosen.empty()) fail("'{}' is no option of fathom (see fathom --help)", name);
    const std::string command = chosen.front()->get_name();
    if (!has(*chosen.front())) fail("'{}' is no option of fathom {} (see fathom {} --help)", name, command, command);
    return {command};
  }

  std::string key() {
    if (peek() == '"' || peek() == '\'') return value();
    const size_t begin = at_;
    while (!at_end() && is_key_character(text_[at_])) ++at_;
    if (at_ == begin) fail("an option's name or [section] should stand here");
    return text_.substr(begin, at_ - begin);
  }

  std::string value() {
    if (accept('"')) return basic_string();
    if (accept('\'')) {
      const size_t end = text_.find_first_of("'\n", at_);
      if (end == std::string::npos || text_[end] != '\'') fail("a string does not end on its line");
      std::string literal = text_.substr(at_, end - at_);
      at_ = end + 1;
      return literal;
    }
    const size_t begin = at_;
    while (!at_end() && (is_key_character(text_[at_]) || text_[at_] == '.' || text_[at_] == '+')) ++at_;
    std::string word = text_.substr(begin, at_ - begin);
    if (word == "true" || word == "false") return word;
    std::erase(word, '_');
    char* end = nullptr;
    (void)std::strtod(word.c_str(), &end);
    if (word.empty() || *end != '\0')
      fail("a value should be a \"string\", a number, true, false or a [list] of these");
    return word;
  }

  std::string basic_string() {
    std::string out;
    while (true) {
      if (at_end() || peek() == '\n') fail("a string does not end on its line");
      const char c = text_[at_++];
      if (c == '"') return out;
      if (c != '\\') {
        out += c;
        continue;
      }
      const char escape = peek();
      ++at_;
      switch (escape) {
        case 'n':
          out += '\n';
          break;
        case 't':
          out += '\t';
          break;
        case 'r':
          out += '\r';
          break;
        case 'b':
          out += '\b';
          break;
        case 'f':
          out += '\f';
          break;
        case '"':
        case '\\':
          out += escape;
          break;
        case 'u':
          append_utf8(out, code_point(4));
          break;
        case 'U':
          append_utf8(out, code_point(8));
          break;
        default:
          fail("an unknown escape in a string; a 'single-quoted' one takes backslashes as they are");
      }
    }
  }

  uint32_t code_point(int digits) {
    uint32_t c = 0;
    for (int i = 0; i < digits; ++i) {
      const char d = peek();
      const int digit = d >= '0' && d <= '9'   ? d - '0'
                        : d >= 'a' && d <= 'f' ? d - 'a' + 10
                        : d >= 'A' && d <= 'F' ? d - 'A' + 10
                                               : -1;
      if (digit < 0 || c > 0x10FFFF >> 4) fail("a \\u escape takes 4 hexadecimal digits, \\U takes 8");
      c = c << 4 | static_cast<uint32_t>(digit);
      ++at_;
    }
    if (c > 0x10FFFF || (c >= 0xD800 && c < 0xE000)) fail("an escape names no Unicode character");
    return c;
  }

  void skip_spaces() {
    while (peek() == ' ' || peek() == '\t') ++at_;
  }
  void skip_comment() {
    skip_spaces();
    if (peek() == '#') at_ = std::min(text_.find('\n', at_), text_.size());
    if (peek() == '\r') ++at_;
  }
  void skip_blank_lines() {
    for (skip_comment(); peek() == '\n'; skip_comment()) {
      ++line_;
      ++at_;
    }
  }
  void end_of_line() {
    skip_comment();
    if (!at_end() && peek() != '\n') fail("nothing more should stand on this line");
  }
  bool at_end() const { return at_ >= text_.size(); }
  char peek() const { return at_end() ? '\0' : text_[at_]; }
  bool accept(char c) {
    if (peek() != c || at_end()) return false;
    ++at_;
    return true;
  }
  template <class... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    const std::string what = fmt::format(format, std::forward<Args>(args)...);
    throw UsageError("{}, line {}: {}", printable(file_), line_, printable(what));
  }

  std::string text_, file_;
  const CLI::App& app_;
  size_t at_ = 0;
  int line_ = 1;
  std::vector<CLI::ConfigItem> items_;
  std::set<std::string> sections_, keys_;
};

class ConfigFile : public CLI::Config {
 public:
  explicit ConfigFile(const CLI::App& app) : app_(app) {}

  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    const std::string file = app_.get_config_ptr()->results().back();
    std::string text(kMaxConfigBytes + 1, '\0');
    input.read(text.data(), static_cast<std::streamsize>(text.size()));
    text.resize(static_cast<size_t>(input.gcount()));
    if (text.size() > kMaxConfigBytes) throw UsageError("{}: larger than 1 MiB, no file of options", printable(file));
    return Reader(std::move(text), file, app_).read();
  }

  std::string to_config(const CLI::App*, bool, bool, std::string) const override { return {}; }

 private:
  const CLI::App& app_;
};

}  // namespace

std::shared_ptr<CLI::Config> config_file_reader(const CLI::App& app) { return std::make_shared<ConfigFile>(app); }

}  // namespace fathom::cli
