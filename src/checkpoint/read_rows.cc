#include "checkpoint/read_rows.h"

#include <bit>
#include <cmath>
#include <cstring>

#include "number/formats.h"

namespace fathom {
namespace {

std::vector<float> read_scales(const MatchedTensor& tensor) {
  std::vector<float> scales(tensor.scale->data.size() / sizeof(float));
  std::memcpy(scales.data(), tensor.scale->data.data(), tensor.scale->data.size());
  for (const float scale : scales) {
    if (!std::isfinite(scale))
      throw Error("{}: tensor {} holds a scale that is not finite", tensor.file->where(), tensor.scale->name);
  }
  return scales;
}

// values: numbers begin .. begin + n of the tensor.
void check_finite(const MatchedTensor& tensor, const float* values, int64_t begin, int64_t n) {
  constexpr uint32_t kExponent = 0x7F800000;  // all its bits set: infinity or NaN
  uint32_t broken = 0;
  for (int64_t i = 0; i < n; ++i) broken |= (std::bit_cast<uint32_t>(values[i]) & kExponent) == kExponent;
  if (broken == 0) return;
  int64_t i = 0;
  while (std::isfinite(values[i])) ++i;
  const int64_t cols = tensor.shape.cols(), place = begin + i;
  throw Error(
      "{}: tensor {} holds a number that is not finite, at {}", tensor.file->where(), tensor.name,
      tensor.shape.rank == 1 ? fmt::to_string(place) : fmt::format("row {}, column {}", place / cols, place % cols));
}

void decode(float* out, const StoredTensor& from, int64_t begin, int64_t n) {
  to_f32(out, from.data.data() + format_bytes(*from.format, begin), *from.format, n);
}

// Whole heads of kv_b_proj: of each, first its rows of k_b turned back, then its rows of v_b.
void join_halves(float* out, const MatchedTensor& tensor, const ModelConfig& config, int64_t first, int64_t n) {
  const int64_t rank = config.kv_lora_rank, nope = config.qk_nope_head_dim, v = config.v_head_dim;
  FATHOM_CHECK(first % (nope + v) == 0 && n % (nope + v) == 0);
  std::vector<float> turned(static_cast<size_t>(rank * nope));
  for (int64_t head = first / (nope + v); head < (first + n) / (nope + v); ++head) {
    decode(turned.data(), *tensor.k_b, head * rank * nope, rank * nope);
    for (int64_t i = 0; i < nope; ++i) {
      for (int64_t r = 0; r < rank; ++r) *out++ = turned[static_cast<size_t>(r * nope + i)];
    }
    decode(out, *tensor.v_b, head * v * rank, v * rank);
    out += v * rank;
  }
}

}  // namespace

std::vector<RowSource> row_sources(std::span<const MatchedTensor> matched) {
  std::vector<RowSource> sources;
  for (const MatchedTensor& tensor : matched) {
    sources.push_back({&tensor, tensor.scale != nullptr ? read_scales(tensor) : std::vector<float>()});
  }
  return sources;
}

void read_rows(float* out, const RowSource& source, const ModelConfig& config, int64_t first, int64_t n) {
  const MatchedTensor& tensor = *source.tensor;
  const int64_t cols = tensor.shape.cols(), begin = first * cols;
  if (tensor.stored == nullptr) {
    join_halves(out, tensor, config, first, n);
  } else if (*tensor.stored->format == Format::f8_e4m3) {
    const auto* codes = reinterpret_cast<const uint8_t*>(tensor.stored->data.data()) + begin;
    dequantize_f8_blocks(out, codes, source.scales.data(), first, n, cols,
                         {config.weight_block_rows, config.weight_block_cols});
  } else if (tensor.paired_rows > 0) {
    for (int64_t i = 0; i < n; ++i) decode(out + i * cols, *tensor.stored, tensor.stored_row(first + i) * cols, cols);
  } else {
    decode(out, *tensor.stored, begin, n * cols);
  }
  check_finite(tensor, out, begin, n * cols);
}

}  // namespace fathom
