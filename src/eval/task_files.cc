#include "eval/task_files.h"

#include <algorithm>
#include <cctype>

#include "base/error.h"
#include "base/file.h"
#include "base/utf8.h"
#include "text/unpacking.h"

namespace fathom::eval {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxBytes = size_t{1} << 30;
constexpr size_t kMaxLineBytes = size_t{256} << 20;  // LiveCodeBench's tests stand in their problem's line

[[noreturn]] void missing(const char* key, const char* what, const std::string& where) {
  throw Error("{}: there is no {} under \"{}\"", where, what, key);
}

}  // namespace

std::optional<fs::path> look_for_task_file(const fs::path& data, std::string_view task,
                                           std::initializer_list<std::string_view> names) {
  if (!path_exists(data)) throw Error("{}: there is no such file or folder", printable(data.native()));
  if (!path_is_directory(data)) return data;
  for (const fs::path& folder : {data, data / task}) {
    for (const std::string_view name : names) {
      if (path_exists(folder / name)) return folder / name;
    }
  }
  return std::nullopt;
}

fs::path find_task_file(const fs::path& data, std::string_view task, std::initializer_list<std::string_view> names) {
  if (const auto found = look_for_task_file(data, task, names)) return *found;
  std::string all;
  for (const std::string_view name : names) all += (all.empty() ? "" : ", ") + std::string(name);
  throw Error("{}: there is none of {}, here or in {}/; --data names the file, or the folder that has it",
              printable(data.native()), all, task);
}

std::string read_task_text(const fs::path& path) {
  UnpackedFile file(path);
  std::string text;
  std::string block(size_t{1} << 20, '\0');
  while (const size_t n = file.read(block.data(), block.size())) {
    text.append(block, 0, n);
    if (text.size() > kMaxBytes) throw Error("{}: has more than {} bytes", printable(path.native()), kMaxBytes);
  }
  if (text.starts_with("\xEF\xBB\xBF")) text.erase(0, 3);
  if (const size_t at = first_invalid_utf8(text); at != kNoPosition) {
    throw Error("{}: byte {} is no UTF-8 text", printable(path.native()), at);
  }
  return text;
}

void for_each_object(const fs::path& path, const std::function<void(simdjson::dom::element, const std::string&)>& use) {
  const std::string name = printable(path.native()), text = read_task_text(path);
  const auto use_one = [&](simdjson::dom::element element, const std::string& where) {
    if (!element.is_object()) throw Error("{}: is no object", where);
    use(element, where);
  };
  if (stripped(text).starts_with('[')) {
    const JsonDocument document = JsonDocument::parse(text, name);
    size_t i = 0;
    for (const simdjson::dom::element element : simdjson::dom::array(document.root())) {
      use_one(element, fmt::format("{}: element {}", name, i++));
    }
    return;
  }
  size_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line = stripped(std::string_view(text).substr(begin, end - begin));
    ++number;
    begin = end + 1;
    if (line.empty()) continue;
    const std::string where = fmt::format("{}: line {}", name, number);
    if (line.size() > kMaxLineBytes) throw Error("{}: has more than {} bytes", where, kMaxLineBytes);
    const JsonDocument document = JsonDocument::parse(line, where);
    use_one(document.root(), where);
  }
}

std::string text_field(simdjson::dom::element object, const char* key, const std::string& where) {
  std::string_view text;
  if (object[key].get(text)) missing(key, "text", where);
  return std::string(text);
}

int64_t integer_field(simdjson::dom::element object, const char* key, const std::string& where) {
  int64_t n = 0;
  if (object[key].get_int64().get(n)) missing(key, "whole number", where);
  return n;
}

std::vector<std::string> texts_field(simdjson::dom::element object, const char* key, const std::string& where) {
  simdjson::dom::array list;
  if (object[key].get(list)) missing(key, "list of texts", where);
  std::vector<std::string> texts;
  for (const simdjson::dom::element element : list) {
    std::string_view text;
    if (element.get(text)) missing(key, "list of texts", where);
    texts.emplace_back(text);
  }
  return texts;
}

std::optional<std::string> find_text(simdjson::dom::element object, const char* key) {
  simdjson::dom::element value;
  if (object[key].get(value) || value.is_null()) return std::nullopt;
  std::string_view text;
  if (!value.get(text)) return std::string(text);
  return simdjson::to_string(value);
}

std::vector<std::vector<std::string>> parse_csv(std::string_view text, const std::string& where) {
  std::vector<std::vector<std::string>> rows;
  size_t i = 0, line = 1;
  while (i < text.size()) {
    std::vector<std::string> row;
    for (bool more = true; more;) {
      std::string field;
      if (i < text.size() && text[i] == '"') {
        const size_t began = line;
        for (++i;; ++i) {
          if (i >= text.size()) throw Error("{}: line {}: a quote does not close", where, began);
          line += text[i] == '\n';
          if (text[i] != '"') {
            field += text[i];
          } else if (i + 1 < text.size() && text[i + 1] == '"') {
            field += text[i++];
          } else {
            break;
          }
        }
        ++i;
        if (i < text.size() && text[i] != ',' && text[i] != '\n' && text[i] != '\r') {
          throw Error("{}: line {}: there is text behind a closing quote", where, line);
        }
      } else {
        while (i < text.size() && text[i] != ',' && text[i] != '\n' && text[i] != '\r') field += text[i++];
      }
      row.push_back(std::move(field));
      more = i < text.size() && text[i] == ',';
      if (more) ++i;
    }
    if (i < text.size() && text[i] == '\r') ++i;
    if (i < text.size() && text[i] == '\n') ++i;
    ++line;
    if (row.size() > 1 || !row[0].empty()) rows.push_back(std::move(row));
  }
  return rows;
}

std::string lowered(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = 'A' <= c && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  return out;
}

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; }

int64_t n_characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

}  // namespace fathom::eval
