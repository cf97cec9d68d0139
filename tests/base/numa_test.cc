#include "base/numa.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "temporary_directory.h"

namespace fathom {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::vector<int> nodes_of(const std::string& list) {
  const test::TemporaryDirectory folder;
  (void)folder.write("has_memory", list);
  return memory_nodes(folder.path());
}

TEST(MemoryNodes, AreTheOnesListed) {
  EXPECT_THAT(nodes_of("0\n"), ElementsAre(0));
  EXPECT_THAT(nodes_of("0-1\n"), ElementsAre(0, 1));
  EXPECT_THAT(nodes_of("0-2,5,8-9\n"), ElementsAre(0, 1, 2, 5, 8, 9));
}

TEST(MemoryNodes, OfWhatIsNoListAreNone) {
  for (const char* list : {"", "\n", "x", "1-", "-1", "3-1", "0;1", "0-99999999", "0-1x", ",", "4294967296"}) {
    EXPECT_THAT(nodes_of(list), IsEmpty()) << list;
  }
  EXPECT_THAT(memory_nodes("/nonexistent"), IsEmpty());
}

// On a thread of its own, whose policy ends with it. Many sandboxes forbid the system call.
TEST(InterleaveMemory, IsTakenOnceAndRefusedForNoNodes) {
  std::thread([] {
    EXPECT_FALSE(interleave_memory({}));
    const std::vector<int> nodes = memory_nodes();
    if (nodes.empty() || !interleave_memory(nodes)) return;
    EXPECT_FALSE(interleave_memory(nodes)) << "a policy that was set before is left alone";
  }).join();
}

}  // namespace
}  // namespace fathom
