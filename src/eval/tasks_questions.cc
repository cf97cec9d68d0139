// Questions of one's own: a file of them, with their answers.
#include "base/error.h"
#include "eval/answers.h"
#include "eval/task_files.h"
#include "eval/tasks.h"

namespace fathom::eval {

std::vector<Item> read_questions(const TaskFiles& files) {
  if (files.shots > 0) throw UsageError("questions: has no examples for --shots");
  std::vector<Item> items;
  for_each_object(find_task_file(files.data, "questions", {"questions.jsonl"}),
                  [&](simdjson::dom::element object, const std::string& where) {
                    if (files.limit && std::ssize(items) == *files.limit) return;
                    const auto question = find_text(object, "question");
                    const auto answer = find_text(object, "answer");
                    if (!answer) throw Error("{}: there is no answer", where);
                    items.push_back({.id = find_text(object, "id").value_or(fmt::format("questions/{}", items.size())),
                                     .subject = find_text(object, "subject").value_or(""),
                                     .prompt = question ? *question : text_field(object, "prompt", where),
                                     .expected = expected_answer(*answer)});
                  });
  return items;
}

}  // namespace fathom::eval
