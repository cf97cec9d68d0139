// How the programs that mpirun starts for tests begin and end.
#pragma once

#include <functional>
#include <string>

#include "parallel/mpi.h"

namespace fathom::test {

// Joins the others and works with them; what fails ends the job, with the program's name.
inline void over_mpi(const std::string& program, const std::function<void(Communicator&)>& work) {
  const std::unique_ptr<Communicator> comm = join_mpi();
  try {
    work(*comm);
  } catch (const std::exception& error) {
    comm->fail(program + ": " + error.what());
  }
}

}  // namespace fathom::test
