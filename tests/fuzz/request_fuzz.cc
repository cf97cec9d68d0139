// Any bytes as the body of a request: read or refused with status 400 and one line.
#include "base/error.h"
#include "serve/messages_api.h"
#include "serve/request.h"
#include "serve/responses_api.h"

namespace {

template <class Parse>
void expect_read_or_refused(const Parse& parse, std::string_view body) {
  using namespace fathom;
  try {
    parse(body);
  } catch (const serve::ApiError& error) {
    FATHOM_CHECK(error.status == 400 && std::string_view(error.what()).find('\n') == std::string_view::npos, "{}",
                 error.what());
    serve::error_json(error);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  expect_read_or_refused(fathom::serve::parse_chat_request, body);
  expect_read_or_refused(fathom::serve::parse_completion_request, body);
  expect_read_or_refused(fathom::serve::parse_tokenize_request, body);
  expect_read_or_refused(fathom::serve::parse_detokenize_request, body);
  // What these make of a body is one that a chat's parser reads.
  using fathom::serve::parse_chat_request;
  const auto messages = [](std::string_view b) { parse_chat_request(fathom::serve::chat_body_of_messages(b, false)); };
  const auto responses = [](std::string_view b) { parse_chat_request(fathom::serve::response_input(b).chat); };
  expect_read_or_refused(messages, body);
  expect_read_or_refused(responses, body);
  return 0;
}
