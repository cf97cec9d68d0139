#include "plan/expression.h"

#include <gtest/gtest.h>

namespace fathom::plan {
namespace {
TEST(Expression, Adds) { EXPECT_EQ(Expression("1 + 2").evaluate({}), 3); }
}  // namespace
}  // namespace fathom::plan
