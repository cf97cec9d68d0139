// Any bytes as an answer, cut anywhere: the parts are those of the whole. The first two bytes choose the format and
// where it is cut.
#include "base/error.h"
#include "base/rng.h"
#include "text/answer_parser.h"

namespace {

using namespace fathom;

void add(std::vector<AnswerPart>& joined, const std::vector<AnswerPart>& parts) {
  for (const AnswerPart& part : parts) {
    if (!joined.empty() && joined.back().kind == part.kind && joined.back().call == part.call) {
      FATHOM_CHECK(part.kind != AnswerPart::Kind::call_name);
      joined.back().text += part.text;
    } else {
      joined.push_back(part);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const AnswerFormat format{static_cast<CallFormat>(data[0] % 4), (data[0] & 4) != 0, (data[0] & 8) != 0,
                            (data[0] & 16) != 0};
  Rng rng(data[1]);
  const std::string_view text(reinterpret_cast<const char*>(data) + 2, size - 2);
  std::vector<AnswerPart> whole, cut;
  AnswerParser one(format), other(format);
  add(whole, one.push(text));
  add(whole, one.finish());
  for (size_t at = 0; at < text.size();) {
    const size_t n = 1 + rng.below(rng.below(2) == 0 ? 3 : 40);
    add(cut, other.push(text.substr(at, n)));
    at += n;
  }
  add(cut, other.finish());
  FATHOM_CHECK(whole == cut);
  return 0;
}
