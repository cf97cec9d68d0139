// What a piece of work that must fail says.
#pragma once

#include <string>

#include "base/error.h"

namespace fathom {

template <class Work>
std::string refusal(const Work& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "(accepted)";
}

}  // namespace fathom
