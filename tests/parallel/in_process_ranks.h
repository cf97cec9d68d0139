// Ranks as threads of a test.
#pragma once

#include <exception>
#include <functional>
#include <thread>
#include <vector>

#include "parallel/communicator.h"

namespace fathom::test {

// `work` on each of n ranks; rethrows what the first of them that failed has thrown.
inline void on_ranks(int n, const std::function<void(Communicator&)>& work) {
  std::vector<std::unique_ptr<Communicator>> comms = in_process_communicators(n);
  std::vector<std::exception_ptr> failed(static_cast<size_t>(n));
  std::vector<std::thread> threads;
  for (size_t rank = 0; rank < comms.size(); ++rank) {
    threads.emplace_back([&, rank] {
      try {
        work(*comms[rank]);
      } catch (const std::exception& error) {
        failed[rank] = std::current_exception();
        comms[rank]->fail(error.what());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::exception_ptr& each : failed) {
    if (each) std::rethrow_exception(each);
  }
}

}  // namespace fathom::test
