// Any bytes as the body of a request, of every route that has one: read or refused with status 400 and one line.
#include <nlohmann/json.hpp>
#include <random>
#include <vector>

#include "base/error.h"
#include "serve/messages_api.h"
#include "serve/request.h"
#include "serve/responses_api.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

using nlohmann::ordered_json;

// Returns whether it was JSON.
template <class Parse>
bool expect_read_or_refused(const Parse& parse, std::string_view body) {
  using namespace fathom;
  try {
    parse(body);
  } catch (const serve::ApiError& error) {
    FATHOM_CHECK(error.status == 400 && std::string_view(error.what()).find('\n') == std::string_view::npos, "{}",
                 error.what());
    serve::error_json(error);
    return error.code != "invalid_json";
  }
  return true;
}

void collect(ordered_json& node, std::vector<ordered_json*>& nodes) {
  nodes.push_back(&node);
  if (node.is_structured()) {
    for (ordered_json& child : node) collect(child, nodes);
  }
}

// One value becomes another, goes, or comes a second time.
void mutate(ordered_json& body, std::minstd_rand& random) {
  static const auto values = ordered_json::parse(
      R"([null, true, false, 0, 1, -1, 2, 0.5, 1e308, -9223372036854775808, 18446744073709551615, "", "a", "auto", [], {}, [1], [[]], {"type": "text"}])");
  const auto pick = [&](const auto& from) -> auto& { return from[random() % from.size()]; };
  std::vector<ordered_json*> nodes;
  collect(body, nodes);
  ordered_json& node = *pick(nodes);
  const ordered_json other = *pick(nodes);
  const unsigned choice = random() % 5;
  if (choice == 0) {
    node = pick(values);
  } else if (choice == 1) {
    node = other;
  } else if (choice == 2 && node.is_structured() && !node.empty()) {
    node.erase(std::next(node.begin(), static_cast<std::ptrdiff_t>(random() % node.size())));
  } else if (node.is_array()) {
    node.push_back(other);
  } else if (node.is_object()) {
    // A key that stands elsewhere, or where there are none its own.
    std::vector<std::string> keys;
    for (const ordered_json* from : nodes) {
      if (from->is_object())
        keys.push_back(from->empty()
                           ? "type"
                           : std::next(from->begin(), static_cast<std::ptrdiff_t>(random() % from->size())).key());
    }
    node[pick(keys)] = other;
  } else if (node.is_string()) {
    std::string text = node.get<std::string>();
    const size_t size = text.size();
    text.resize(size + 16);
    text.resize(LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(text.data()), size, text.size()));
    node = text;
  } else {
    node = pick(values);
  }
}

}  // namespace

// Two of three bodies stay JSON, which blind changes seldom are.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  std::minstd_rand random(seed + 1);
  if (random() % 3 == 0) return LLVMFuzzerMutate(data, size, max_size);
  auto body = ordered_json::parse(data, data + size, nullptr, false);
  if (body.is_discarded()) return LLVMFuzzerMutate(data, size, max_size);
  mutate(body, random);
  const std::string text = body.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  if (text.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  std::copy(text.begin(), text.end(), data);
  return text.size();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace fathom::serve;
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  // What is no JSON is so by the same function in all of them.
  if (!expect_read_or_refused(parse_chat_request, body)) return 0;
  expect_read_or_refused(parse_completion_request, body);
  expect_read_or_refused(parse_tokenize_request, body);
  expect_read_or_refused(parse_detokenize_request, body);
  // What these make of a body is one that a chat's parser reads.
  expect_read_or_refused([](std::string_view b) { parse_chat_request(chat_body_of_messages(b, false)); }, body);
  expect_read_or_refused([](std::string_view b) { parse_chat_request(response_input(b).chat); }, body);
  return 0;
}
