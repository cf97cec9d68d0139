// Writes any stored model as a Hugging Face directory, as transformers and the official release have them: a model of
// any size passes through a few megabytes for each thread.
#pragma once

#include <filesystem>

#include "base/thread_pool.h"
#include "checkpoint/packed_model.h"
#include "checkpoint/shards.h"

namespace fathom {

// format: f32, bf16, f16, or f8_e4m3 with a scale for 128 x 128 numbers (`weight_scale_inv`). Correction biases are f32
// always. In an FP8 directory embedding, head, norms, router and MTP's projection are bf16, norms and router f32 where
// they are stored so; weights that are stored in such blocks keep their codes and scales. MTP's copies of embedding and
// head are written too. Files appear whole or not at all.
void convert_to_hf(const std::filesystem::path& from, const std::filesystem::path& to, Format format, ThreadPool& pool,
                   const ConvertOptions& options = {}, int64_t max_shard_bytes = kMaxShardBytes);

// What it would write; scales count as bytes of their format.
WeightSizes hf_sizes(const std::filesystem::path& from, Format format);

}  // namespace fathom
