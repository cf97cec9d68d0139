// ARC, the AI2 Reasoning Challenge (Clark et al. 2018): three to five choices.
#include <algorithm>

#include "base/error.h"
#include "base/file.h"
#include "eval/task_files.h"
#include "eval/tasks.h"

namespace fathom::eval {
namespace {

Item read_item(simdjson::dom::element object, const std::string& where) {
  simdjson::dom::element question;
  simdjson::dom::array choices;
  if (object["question"].get(question) || question["choices"].get(choices)) {
    throw Error("{}: there is no question with choices", where);
  }
  Item item{.id = text_field(object, "id", where)};
  item.prompt = fmt::format("Question: {}\nAnswer:", text_field(question, "stem", where));
  const std::string key = text_field(object, "answerKey", where);
  for (const simdjson::dom::element choice : choices) {
    if (text_field(choice, "label", where) == key) item.gold = std::ssize(item.choices);
    item.choices.push_back(" " + text_field(choice, "text", where));
  }
  if (item.gold < 0) throw Error("{}: none of the choices is the answer {}", where, printable(key, 20));
  return item;
}

}  // namespace

std::vector<Item> read_arc(const TaskFiles& files) {
  const auto path =
      find_task_file(files.data, "arc", {"ARC-Challenge-Test.jsonl", "ARC-Challenge/ARC-Challenge-Test.jsonl"});
  std::vector<Item> items, examples;
  for_each_object(path, [&](simdjson::dom::element object, const std::string& where) {
    if (!files.limit || std::ssize(items) < *files.limit) items.push_back(read_item(object, where));
  });
  if (files.shots == 0) return items;
  // The training questions, where they are there.
  std::optional<std::filesystem::path> from;
  for (const char* const name : {"ARC-Challenge-Train.jsonl", "ARC-Challenge-Dev.jsonl"}) {
    if (!from && path_exists(path.parent_path() / name)) from = path.parent_path() / name;
  }
  if (!from) {
    throw Error("{}: for --shots there must be an ARC-Challenge-Train.jsonl or ARC-Challenge-Dev.jsonl beside it",
                printable(path.native()));
  }
  for_each_object(*from, [&](simdjson::dom::element object, const std::string& where) {
    examples.push_back(read_item(object, where));
  });
  add_examples(items, examples, files.shots, *from);
  return items;
}

}  // namespace fathom::eval
