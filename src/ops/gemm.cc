// Who computes which part of a product, and from which copy of B. The inner loops are in ops/cpu/gemm.cc.
#include "ops/gemm.h"

#include <algorithm>
#include <vector>

#include "base/arithmetic.h"
#include "ops/cpu/gemm_kernels.h"
#include "ops/cpu/isa.h"

namespace fathom {
namespace {

constexpr int64_t kMaxDepth = 256;       // k is cut into even blocks of at most this: a panel of B then lies in L1
constexpr int64_t kMaxRows = 96;         // rows of C in a task: its block of A then lies in L2
constexpr int64_t kMaxCols = 1024;       // columns of C in a task
constexpr int64_t kOneThreadCols = 256;  // columns of B packed at a time by gemm_one_thread
constexpr int64_t kPackedFloats = int64_t{3} << 20;  // of B, kept packed at a time
constexpr int64_t kMinWork = int64_t{1} << 18;       // multiply-adds: less is not worth a task of its own
constexpr int64_t kTasksPerThread = 8;               // so that the last to finish is not far behind

const cpu::GemmKernels& kernels() {
  static const cpu::GemmKernels& chosen =
      cpu::choose(cpu::baseline::gemm_kernels, cpu::avx2::gemm_kernels, cpu::avx512::gemm_kernels);
  return chosen;
}

// The length of the blocks that k is cut into. It decides the order of the sums and so depends on k alone.
int64_t depth_of(int64_t k) {
  const int64_t n_blocks = std::max<int64_t>(1, ceil_div(k, kMaxDepth));
  return std::max<int64_t>(1, round_up(ceil_div(k, n_blocks), 16));
}

int64_t depth_of(const GemmCall& call) { return call.depth > 0 ? call.depth : depth_of(call.shape.k); }

int64_t packed_a_floats(int64_t rows, int64_t depth) { return round_up(rows, kernels().mr) * depth + 16; }

void pack_b(float* panel, const GemmCall& call, int64_t k_begin, int64_t k, int64_t col) {
  const GemmShape& s = call.shape;
  const float* b = s.b_transposed ? call.b + col * s.ldb + k_begin : call.b + k_begin * s.ldb + col;
  kernels().pack_b(panel, b, s.ldb, s.b_transposed, k, std::min(kernels().nr, s.n - col));
}

// Rows and columns of C.
struct Tile {
  int64_t row, n_rows, col, n_cols;
};

// Adds (or for the first block of k, unless the call accumulates, assigns) the products of k_begin .. k_begin + k to a
// tile of C. b: its first panel at row k_begin. packed_a: for a transposed A, packed already unless `pack`.
void multiply(const GemmCall& call, const Tile& tile, int64_t k_begin, int64_t k, const float* b, int64_t b_stride,
              float* packed_a, bool pack = true) {
  const GemmShape& s = call.shape;
  const float* a = call.a + tile.row * s.lda + k_begin;
  if (s.a_transposed) {
    if (pack) kernels().pack_a(packed_a, call.a + k_begin * s.lda + tile.row, s.lda, k, tile.n_rows);
    a = packed_a;
  }
  kernels().multiply({tile.n_rows, tile.n_cols, k, a, s.lda, s.a_transposed, b, b_stride,
                      call.c + tile.row * s.ldc + tile.col, s.ldc, call.accumulate || k_begin > 0});
}

// All of k for one tile, with B packed beforehand: panels of k rows, the first for column `first_col`.
void multiply_packed(const GemmCall& call, const Tile& tile, const float* packed_b, int64_t first_col,
                     float* packed_a) {
  const int64_t k = call.shape.k, nr = kernels().nr, depth = depth_of(call);
  for (int64_t p = 0; p == 0 || p < k; p += depth) {
    multiply(call, tile, p, std::min(depth, k - p), packed_b + (tile.col - first_col) * k + p * nr, k * nr, packed_a);
  }
}

// All of k for one tile, packing B panel by panel on the way: for when nobody else needs this part of B.
void multiply_packing(const GemmCall& call, const Tile& tile, float* panel, float* packed_a) {
  const int64_t k = call.shape.k, nr = kernels().nr, depth = depth_of(call);
  for (int64_t p = 0; p == 0 || p < k; p += depth) {
    const int64_t n_deep = std::min(depth, k - p);
    for (int64_t col = tile.col; col < tile.col + tile.n_cols; col += nr) {
      pack_b(panel, call, p, n_deep, col);
      const Tile slice = {tile.row, tile.n_rows, col, std::min(nr, tile.col + tile.n_cols - col)};
      multiply(call, slice, p, n_deep, panel, 0, packed_a, col == tile.col);
    }
  }
}

// Columns of a call that are computed in one go, from B packed for all of them or (packed_b null) by each task.
struct Piece {
  const GemmCall* call;
  int64_t col, n_cols;
  float* packed_b;
};
struct Task {
  const Piece* piece;
  Tile tile;
};

// Multiply-adds, with packing counted as so many.
int64_t work(int64_t rows, int64_t cols, int64_t k) { return (rows + 8) * cols * k; }

// Does every task pack for itself the part of B that it reads? A panel is then read from L1, where one packed
// beforehand has gone to memory and back, but is made anew for each kMaxRows rows of C. A transposed B costs more to
// pack.
bool packs_on_the_way(const GemmShape& s) { return s.m <= (s.b_transposed ? 1 : 4) * kMaxRows; }

// Cuts the pieces into tiles of at most about `work_of_task`: columns first, but not to where little use is made of
// what a tile packs, and rows not to where a panel of B is loaded for few of them. Tiles of a transposed A, which pack
// both operands, are kept larger: up to `most_of_task`.
std::vector<Task> make_tasks(std::span<const Piece> pieces, int64_t work_of_task, int64_t most_of_task) {
  const auto [mr, nr] = std::pair(kernels().mr, kernels().nr);
  std::vector<Task> tasks;
  for (const Piece& piece : pieces) {
    const GemmShape& s = piece.call->shape;
    int64_t rows = std::min(s.m, kMaxRows), cols = std::min(piece.n_cols, kMaxCols);
    const int64_t limit = s.a_transposed ? most_of_task : work_of_task;
    const auto more_than = [&](int64_t most) { return work(rows, cols, s.k) > most; };
    const auto halve = [](int64_t n, int64_t multiple) { return round_up(ceil_div(n, 2), multiple); };
    const bool keep_rows = s.b_transposed && piece.packed_b == nullptr;
    while (more_than(work_of_task) && cols > 4 * nr) cols = halve(cols, nr);
    while (more_than(limit) && rows > 8 * mr && !keep_rows) rows = halve(rows, mr);
    while (more_than(limit) && cols > nr) cols = halve(cols, nr);
    for (int64_t row = 0; row < s.m; row += rows) {
      for (int64_t col = 0; col < piece.n_cols; col += cols) {
        tasks.push_back(
            {&piece, {row, std::min(rows, s.m - row), piece.col + col, std::min(cols, piece.n_cols - col)}});
      }
    }
  }
  return tasks;
}

// Packs what the pieces' tasks share.
void pack_pieces(Context& ctx, std::span<const Piece> pieces) {
  struct Panel {
    const Piece* piece;
    int64_t col;
  };
  std::vector<Panel> panels;
  int64_t floats = 0;
  for (const Piece& piece : pieces) {
    if (piece.packed_b == nullptr) continue;
    for (int64_t col = 0; col < piece.n_cols; col += kernels().nr) panels.push_back({&piece, col});
    floats += piece.n_cols * piece.call->shape.k;
  }
  if (panels.empty()) return;
  const int64_t n = static_cast<int64_t>(panels.size()), floats_of_panel = std::max<int64_t>(1, floats / n);
  ctx.pool.parallel_for(0, n, std::max<int64_t>(1, (1 << 14) / floats_of_panel), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto& [piece, col] = panels[static_cast<size_t>(i)];
      const int64_t k = piece->call->shape.k;
      pack_b(piece->packed_b + col * k, *piece->call, 0, k, piece->col + col);
    }
  });
}

void run_pieces(Context& ctx, std::span<const Piece> pieces, float* scratch, int64_t scratch_stride) {
  int64_t total = 0;
  for (const Piece& piece : pieces) total += work(piece.call->shape.m, piece.n_cols, piece.call->shape.k);
  const auto share = [&](int64_t tasks_per_thread) {
    return ctx.pool.size() == 1 ? total : std::max(kMinWork, total / (tasks_per_thread * ctx.pool.size()));
  };
  const std::vector<Task> tasks = make_tasks(pieces, share(kTasksPerThread), share(2));
  pack_pieces(ctx, pieces);
  ctx.pool.run(static_cast<int64_t>(tasks.size()), [&](int64_t i, int thread) {
    const auto& [piece, tile] = tasks[static_cast<size_t>(i)];
    float* packed_a = scratch + thread * scratch_stride;
    if (piece->packed_b != nullptr) {
      multiply_packed(*piece->call, tile, piece->packed_b, piece->col, packed_a);
    } else {
      multiply_packing(*piece->call, tile, packed_a + packed_a_floats(kMaxRows, kMaxDepth), packed_a);
    }
  });
}

}  // namespace

void gemm_many(Context& ctx, std::span<const GemmCall> calls) {
  const ArenaScope scope(ctx.arena);
  const auto floats = [&](int64_t n) { return static_cast<float*>(ctx.arena.allocate(static_cast<size_t>(n) * 4)); };
  const int64_t nr = kernels().nr;
  for (const GemmCall& call : calls) FATHOM_CHECK(call.depth <= kMaxDepth);
  const int64_t scratch_stride = round_up(packed_a_floats(kMaxRows, kMaxDepth), 16) + kMaxDepth * nr;
  float* scratch = floats(scratch_stride * ctx.pool.size());

  std::vector<Piece> pieces;
  const Arena::Mark mark = ctx.arena.mark();
  int64_t packed = 0;
  const auto flush = [&] {
    run_pieces(ctx, pieces, scratch, scratch_stride);
    pieces.clear();
    ctx.arena.release(mark);
    packed = 0;
  };
  for (const GemmCall& call : calls) {
    const GemmShape& s = call.shape;
    if (s.m == 0 || s.n == 0) continue;
    if (packs_on_the_way(s)) {
      pieces.push_back({&call, 0, s.n, nullptr});
      continue;
    }
    const int64_t max_cols = std::max(nr, kPackedFloats / std::max<int64_t>(1, s.k) / nr * nr);
    for (int64_t col = 0; col < s.n; col += max_cols) {
      const int64_t n_cols = std::min(max_cols, s.n - col), size = round_up(n_cols, nr) * s.k;
      if (packed > 0 && packed + size > kPackedFloats) flush();
      pieces.push_back({&call, col, n_cols, floats(size)});
      packed += size;
    }
  }
  if (!pieces.empty()) flush();
}

void gemm(Context& ctx, const GemmShape& shape, const float* a, const float* b, float* c, bool accumulate) {
  const GemmCall call = {shape, a, b, c, accumulate};
  gemm_many(ctx, {&call, 1});
}

int64_t gemm_scratch_floats(const GemmShape& shape) {
  const int64_t depth = depth_of(shape.k);
  const int64_t panels = round_up(std::min(shape.n, kOneThreadCols), kernels().nr) * depth;
  return panels + (shape.a_transposed ? packed_a_floats(std::min(shape.m, kMaxRows), depth) : 0);
}

void gemm_one_thread(const GemmShape& shape, const float* a, const float* b, float* c, bool accumulate,
                     float* scratch) {
  const GemmCall call = {shape, a, b, c, accumulate};
  const int64_t nr = kernels().nr, depth = depth_of(shape.k);
  float* packed_a = scratch + round_up(std::min(shape.n, kOneThreadCols), nr) * depth;
  for (int64_t col = 0; col < shape.n; col += kOneThreadCols) {
    const int64_t n_cols = std::min(kOneThreadCols, shape.n - col);
    for (int64_t p = 0; p == 0 || p < shape.k; p += depth) {
      const int64_t k = std::min(depth, shape.k - p);
      for (int64_t j = 0; j < n_cols; j += nr) pack_b(scratch + j * k, call, p, k, col + j);
      for (int64_t row = 0; row < shape.m; row += kMaxRows) {
        const Tile tile = {row, std::min(kMaxRows, shape.m - row), col, n_cols};
        multiply(call, tile, p, k, scratch, k * nr, packed_a);
      }
    }
  }
}

}  // namespace fathom
