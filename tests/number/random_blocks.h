// Blocks of any block format with arbitrary codes and scales of ordinary size.
#pragma once

#include <cstring>
#include <vector>

#include "base/rng.h"
#include "number/formats.h"
#include "number/tensor.h"

namespace fathom {

inline constexpr Format kBlockFormats[] = {Format::q8_0, Format::q4_0, Format::q5_0,
                                           Format::q4_k, Format::q5_k, Format::q6_k};

// Where the f16 numbers of a block stand.
inline std::vector<size_t> f16_places(Format format) {
  if (format == Format::q4_k || format == Format::q5_k || format == Format::q5_1) return {0, 2};
  return {format == Format::q6_k ? size_t{208} : 0};
}

// n numbers, whole blocks.
inline std::vector<uint8_t> random_blocks(Format format, int64_t n, uint64_t seed) {
  const FormatTraits traits = format_traits(format);
  std::vector<uint8_t> bytes(static_cast<size_t>(format_bytes(format, n)));
  Rng rng(seed);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(rng.next() >> 56);
  for (size_t block = 0; block < bytes.size(); block += static_cast<size_t>(traits.block_bytes)) {
    for (const size_t place : f16_places(format)) {
      const uint16_t d = f32_to_f16(static_cast<float>(0.01 * rng.normal()));
      std::memcpy(bytes.data() + block + place, &d, 2);
    }
  }
  return bytes;
}

}  // namespace fathom
