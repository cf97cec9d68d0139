#include "checkpoint/stored_model.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "base/arithmetic.h"
#include "number/formats.h"
#include "number/panels.h"

namespace fathom {
namespace {

// Where a tensor lies among the weights, of which gate and up are one, and all experts too.
struct Fused {
  WeightKind kind;
  Tensor shape;
  const Tensor* packed;
};

// By address: weight_shapes gives every tensor one, and a part of a fused tensor one inside it.
std::map<uintptr_t, Fused> fused_weights(ModelWeights& shapes, ModelWeights* packed) {
  std::vector<const Tensor*> slots;
  if (packed != nullptr) {
    for_each_weight(*packed, [&](WeightKind, Tensor& slot) { slots.push_back(&slot); });
  }
  std::map<uintptr_t, Fused> fused;
  size_t i = 0;
  for_each_weight(shapes, [&](WeightKind kind, Tensor& shape) {
    const Tensor* slot = packed != nullptr ? slots.at(i++) : nullptr;
    if (shape)
      fused.try_emplace(reinterpret_cast<uintptr_t>(shape.data), Fused{kind, shape, slot});  // a tied head goes
  });
  return fused;
}

// Row `row` of all the matrices of a packed weight, and those behind it in its panel, as many as are wanted.
int64_t unpack_rows(float* out, const Tensor& weight, int64_t row, int64_t wanted, std::vector<float>& panel) {
  const int64_t cols = weight.cols();
  if (!weight.panels) {
    to_f32(out, static_cast<const char*>(weight.data) + format_bytes(weight.format, row * cols), weight.format,
           wanted * cols);
    return wanted;
  }
  const int64_t rows_of_matrix = weight.shape[weight.rank - 2], in_matrix = row % rows_of_matrix;
  const int64_t index = row / rows_of_matrix * ceil_div(rows_of_matrix, kPanelRows) + in_matrix / kPanelRows;
  const int64_t in_panel = in_matrix % kPanelRows;
  const int64_t n = std::min({wanted, kPanelRows - in_panel, rows_of_matrix - in_matrix});
  panel.resize(static_cast<size_t>(kPanelRows * cols));
  unpack_panel(panel.data(), static_cast<const char*>(weight.data) + index * weight.row_stride, weight.format, cols);
  std::copy_n(panel.data() + in_panel * cols, n * cols, out);
  return n;
}

}  // namespace

Format StoredWeight::format() const {
  if (packed != nullptr) return packed->format;
  const MatchedTensor& tensor = *source->tensor;
  return tensor.stored != nullptr ? *tensor.stored->format : *tensor.v_b->format;
}

std::unique_ptr<StoredModel> open_stored_model(const std::filesystem::path& path) {
  check_model_path(path);
  auto model = std::make_unique<StoredModel>();
  model->where = printable(path.native());
  model->config = read_model_config(path);
  const bool packed = model->config.packed;
  if (packed) {
    model->packed = map_packed_model(path, model->config);
  } else {
    model->checkpoint = open_checkpoint(path);
    model->matched = match_tensors(model->checkpoint, model->config);
    model->sources = row_sources(model->matched);
  }
  ModelWeights shapes = weight_shapes(model->config);
  const auto fused = fused_weights(shapes, packed ? &model->packed.weights : nullptr);
  for_each_tensor(shapes, model->config, [&](const NamedTensor& named) {
    const auto place = reinterpret_cast<uintptr_t>(named.view.data);
    const auto& [begin, weight] = *std::prev(fused.upper_bound(place));
    StoredWeight stored{named.name, weight.kind, named.view, nullptr, weight.packed, 0};
    const auto floats = static_cast<int64_t>((place - begin) / sizeof(float));
    stored.first_row = floats / named.view.cols();
    if (!packed) stored.source = &model->sources.at(model->weights.size());
    stored.shape.data = nullptr;
    model->weights.push_back(std::move(stored));
  });
  return model;
}

int64_t rows_of_reading(const StoredWeight& weight, const ModelConfig& config) {
  const bool halves = weight.source != nullptr && weight.source->tensor->stored == nullptr;
  return halves ? config.qk_nope_head_dim + config.v_head_dim : 1;
}

void read_rows(float* out, const StoredModel& model, const StoredWeight& weight, int64_t first, int64_t n) {
  if (weight.source != nullptr) return read_rows(out, *weight.source, model.config, first, n);
  const int64_t cols = weight.shape.cols();
  std::vector<float> panel;
  for (int64_t done = 0; done < n;) {
    done += unpack_rows(out + done * cols, *weight.packed, weight.first_row + first + done, n - done, panel);
  }
  const auto* broken = std::find_if(out, out + n * cols, [](float x) { return !std::isfinite(x); });
  if (broken == out + n * cols) return;
  throw Error("{}: weight {} holds a number that is not finite, at row {}, column {}", model.where, weight.name,
              first + (broken - out) / cols, (broken - out) % cols);
}

ModelDifference compare_weights(const StoredModel& a, const StoredModel& b, ThreadPool& pool,
                                const std::function<void(int64_t done)>& on_numbers) {
  const auto same = [](const StoredWeight& x, const StoredWeight& y) {
    return x.name == y.name && std::equal(x.shape.shape, x.shape.shape + 4, y.shape.shape);
  };
  if (!std::ranges::equal(a.weights, b.weights, same)) {
    throw Error("{}: has other weights than {}", b.where, a.where);
  }
  constexpr int64_t kPieceNumbers = int64_t{1} << 18;
  struct Sums {
    double difference = 0, all = 0;
  };
  ModelDifference result;
  Sums total;
  int64_t done = 0;
  for (size_t w = 0; w < a.weights.size(); ++w) {
    const StoredWeight &of_a = a.weights[w], &of_b = b.weights[w];
    const int64_t rows = of_a.shape.rows(), cols = of_a.shape.cols();
    const int64_t unit = std::max(rows_of_reading(of_a, a.config), rows_of_reading(of_b, b.config));  // 1 or heads
    const int64_t step = std::max<int64_t>(1, kPieceNumbers / (cols * unit)) * unit;
    std::vector<Sums> pieces(static_cast<size_t>(ceil_div(rows, step)));
    pool.parallel_for(0, rows, step, [&](int64_t begin, int64_t end) {
      const auto n = static_cast<size_t>((end - begin) * cols);
      std::vector<float> x(n), y(n);
      read_rows(x.data(), a, of_a, begin, end - begin);
      read_rows(y.data(), b, of_b, begin, end - begin);
      Sums& sums = pieces[static_cast<size_t>(begin / step)];
      for (size_t i = 0; i < n; ++i) {
        const double difference = static_cast<double>(x[i]) - y[i];
        sums.difference += difference * difference;
        sums.all += static_cast<double>(x[i]) * x[i];
      }
    });
    Sums of_weight;
    for (const Sums& piece : pieces) {
      of_weight.difference += piece.difference;
      of_weight.all += piece.all;
    }
    total.difference += of_weight.difference;
    total.all += of_weight.all;
    const auto relative = [](const Sums& sums) { return sums.all > 0 ? std::sqrt(sums.difference / sums.all) : 0; };
    result.weights.push_back({&of_b, relative(of_weight)});
    result.relative_rms = relative(total);
    done += rows * cols;
    if (on_numbers) on_numbers(done);
  }
  return result;
}

}  // namespace fathom
