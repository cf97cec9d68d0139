// Compares answers: each line of standard input is a JSON array [given, expected]; prints 1 where they are the same,
// else 0.
#include <iostream>
#include <string>

#include "base/json.h"
#include "eval/answers.h"

int main() {
  std::string line;
  while (std::getline(std::cin, line)) {
    const fathom::JsonDocument pair = fathom::JsonDocument::parse(line, "standard input");
    const std::string_view given = pair.root().at(0), expected = pair.root().at(1);
    std::cout << (fathom::eval::same_answer(given, expected) ? "1\n" : "0\n");
  }
}
