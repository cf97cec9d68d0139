// Every kernel table that this CPU can run, and contexts of several sizes.
#pragma once

#include <vector>

#include "base/cpu.h"
#include "ops/context.h"

namespace fathom {

template <class Table>
struct NamedTable {
  const char* isa;
  const Table& table;
};
template <class Table>
std::vector<NamedTable<Table>> each_isa(const Table& baseline, const Table& avx2, const Table& avx512) {
  std::vector<NamedTable<Table>> tables = {{"baseline", baseline}};
  if (cpu_isa() >= Isa::avx2) tables.push_back({"avx2", avx2});
  if (cpu_isa() >= Isa::avx512) tables.push_back({"avx512", avx512});
  return tables;
}

// A context of its own with n threads.
struct ThreadedContext {
  explicit ThreadedContext(int n_threads) : pool(n_threads) {}
  ThreadPool pool;
  Arena arena;
  Context ctx{pool, arena};
};

}  // namespace fathom
