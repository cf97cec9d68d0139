// The tokenizers that the tests run on.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "temporary_directory.h"
#include "text/tokenizer.h"

namespace fathom::test {

using Json = nlohmann::ordered_json;

inline std::filesystem::path text_data() { return std::filesystem::path(FATHOM_TEST_DATA) / "text"; }

inline std::string slurp(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("cannot open " + path.string());
  return {std::istreambuf_iterator<char>(in), {}};
}

inline std::vector<std::string> lines_of(const std::filesystem::path& path) {
  std::istringstream in(slurp(path));
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

// The released tokenizers are kept without what their merges imply: a token's id follows from the place of its merge.
inline Tokenizer released_tokenizer(const std::string& name) {
  Json json = Json::parse(slurp(text_data() / name / "frame.json"));
  const Json first_tokens = json["model"]["vocab"];
  json["model"].erase("vocab");
  json["model"].erase("merges");
  std::string vocab, merges;
  size_t id = 0;
  const auto token = [&](const std::string& text) {
    if (id > 0) vocab += ',';
    vocab += Json(text).dump() + ':' + std::to_string(id++);
  };
  for (const Json& text : first_tokens) token(text);
  for (std::string line : lines_of(text_data() / name / "merges.txt")) {
    if (!merges.empty()) merges += ',';
    merges += Json(line).dump();
    line.erase(line.find(' '), 1);
    token(line);
  }
  std::string text = json.dump();
  text.resize(text.size() - 2);  // the end of the model and of the file
  text += ",\"vocab\":{" + vocab + "},\"merges\":[" + merges + "]}}";
  const TemporaryDirectory directory;
  return Tokenizer::load(directory.write("released.json", text));
}

}  // namespace fathom::test
