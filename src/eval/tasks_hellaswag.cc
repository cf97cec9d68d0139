// HellaSwag (Zellers et al. 2019): which of four endings goes on with what is told.
#include "base/error.h"
#include "base/utf8.h"
#include "eval/task_files.h"
#include "eval/tasks.h"

namespace fathom::eval {
namespace {

void replace_all(std::string& text, std::string_view what, std::string_view by) {
  for (size_t at = 0; (at = text.find(what, at)) != std::string::npos; at += by.size())
    text.replace(at, what.size(), by);
}

// As the harness cleans what came from WikiHow.
std::string cleaned(std::string_view raw) {
  std::string text(stripped(raw));
  replace_all(text, " [title]", ". ");
  // "[...]" on one line
  std::string kept;
  for (size_t i = 0; i < text.size();) {
    const size_t end = text[i] == '[' ? text.find_first_of("]\n", i) : std::string::npos;
    if (end != std::string::npos && text[end] == ']') {
      i = end + 1;
    } else {
      kept += text[i++];
    }
  }
  replace_all(kept, "  ", " ");
  return kept;
}

// Python's capitalize(), of ASCII.
std::string capitalized(std::string text) {
  const auto shift = [](char c, char first, char last, int by) {
    return c >= first && c <= last ? static_cast<char>(c + by) : c;
  };
  for (char& c : text) c = shift(c, 'A', 'Z', 'a' - 'A');
  if (!text.empty()) text[0] = shift(text[0], 'a', 'z', 'A' - 'a');
  return text;
}

Item read_item(simdjson::dom::element object, const std::string& where, size_t number) {
  Item item{.id = find_text(object, "ind").value_or(fmt::format("{}", number))};
  item.subject = find_text(object, "activity_label").value_or("");
  item.prompt = cleaned(item.subject + ": " + text_field(object, "ctx_a", where) + " " +
                        capitalized(text_field(object, "ctx_b", where)));
  item.subject.clear();  // some hundred, of a few questions each
  for (const std::string& ending : texts_field(object, "endings", where)) item.choices.push_back(" " + cleaned(ending));
  const std::string label = find_text(object, "label").value_or("");
  const bool is_number = label.size() == 1 && label[0] >= '0' && label[0] <= '9';
  item.gold = is_number ? label[0] - '0' : -1;
  if (item.gold < 0 || item.gold >= std::ssize(item.choices)) {
    throw Error("{}: the label must be the number of an ending (the test file has none: use the validation file)",
                where);
  }
  return item;
}

}  // namespace

std::vector<Item> read_hellaswag(const TaskFiles& files) {
  const auto path = find_task_file(files.data, "hellaswag", {"hellaswag_val.jsonl", "data/hellaswag_val.jsonl"});
  std::vector<Item> items, examples;
  for_each_object(path, [&](simdjson::dom::element object, const std::string& where) {
    if (!files.limit || std::ssize(items) < *files.limit) items.push_back(read_item(object, where, items.size()));
  });
  if (files.shots == 0) return items;
  const auto train = find_task_file(path.parent_path(), "hellaswag", {"hellaswag_train.jsonl"});
  for_each_object(train, [&](simdjson::dom::element object, const std::string& where) {
    examples.push_back(read_item(object, where, examples.size()));
  });
  add_examples(items, examples, files.shots, train);
  return items;
}

}  // namespace fathom::eval
