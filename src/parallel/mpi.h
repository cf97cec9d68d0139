// Ranks that are processes, started by mpirun or Slurm.
#pragma once

#include <memory>

#include "parallel/communicator.h"

namespace fathom {

// Whether this program was started as one of several processes: by mpirun, or by srun with PMI.
bool started_by_mpi();

// Whether this is the process numbered 0, known before joining and after leaving.
bool is_first_of_mpi();

// Joins them. To be called once, before the process makes threads. Error where the program was built without MPI. Ranks
// tell each other twice a second that they are there: of whom nothing has been heard for hang_s the job is ended with
// his name.
std::unique_ptr<Communicator> join_mpi(double hang_s = 60);

// "Open MPI 4.1.4", or that MPI is not built.
std::string mpi_build_text();

}  // namespace fathom
