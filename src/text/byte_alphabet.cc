#include "text/byte_alphabet.h"

#include <array>

#include "base/utf8.h"

namespace fathom {
namespace {

struct ByteAlphabet {
  std::array<char32_t, 256> letter;
  std::array<int16_t, 0x144> byte;  // by letter
  ByteAlphabet() {
    byte.fill(-1);
    char32_t next = 0x100;
    for (unsigned b = 0; b < 256; ++b) {
      const bool prints = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      letter[b] = prints ? static_cast<char32_t>(b) : next++;
      byte[letter[b]] = static_cast<int16_t>(b);
    }
  }
};

const ByteAlphabet& alphabet() {
  static const ByteAlphabet table;
  return table;
}

}  // namespace

char32_t byte_to_letter(uint8_t byte) { return alphabet().letter[byte]; }

int letter_to_byte(char32_t letter) { return letter < alphabet().byte.size() ? alphabet().byte[letter] : -1; }

std::string spell_bytes(std::string_view bytes) {
  std::string out;
  for (const char byte : bytes) append_utf8(out, byte_to_letter(static_cast<uint8_t>(byte)));
  return out;
}

bool unspell_bytes(std::string_view spelled, std::string& bytes) {
  bytes.clear();
  while (!spelled.empty()) {
    const int byte = letter_to_byte(utf8_code_point(spelled));
    if (byte < 0) return false;
    bytes += static_cast<char>(byte);
    spelled.remove_prefix(utf8_unit(spelled).bytes);
  }
  return true;
}

}  // namespace fathom
