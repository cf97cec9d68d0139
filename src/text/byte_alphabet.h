// The byte alphabet of byte-level vocabularies.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace fathom {

// Byte-level vocabularies spell every byte as a printable character: itself where it is one, else U+0100 and following.
char32_t byte_to_letter(uint8_t byte);
int letter_to_byte(char32_t letter);  // -1: no letter of that alphabet

// Text spelled in that alphabet; and back, empty-handed (false) where a character is not of it.
std::string spell_bytes(std::string_view bytes);
bool unspell_bytes(std::string_view spelled, std::string& bytes);

}  // namespace fathom
