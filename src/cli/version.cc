#include "base/cpu.h"
#include "base/error.h"
#include "cli/command.h"
#include "ops/device.h"
#include "parallel/mpi.h"
#include "parallel/nccl.h"

namespace fathom::cli {

std::string version_text() {
  return fmt::format("fathom {} ({})\ninstruction sets: built {}; found {}; used {}\nbackends: CPU ({}, {}, {})",
                     FATHOM_VERSION, FATHOM_COMMIT, isas_built(), isas_found(), isa_name(cpu_isa()), cuda_build_text(),
                     mpi_build_text(), nccl_build_text());
}

}  // namespace fathom::cli
