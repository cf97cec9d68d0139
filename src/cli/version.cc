#include "base/cpu.h"
#include "base/error.h"
#include "cli/command.h"

namespace fathom::cli {

std::string version_text() {
  return fmt::format(
      "fathom {} ({})\ninstruction sets: built {}; found {}; used {}\nbackends: CPU (CUDA: not built, MPI: not built)",
      FATHOM_VERSION, FATHOM_COMMIT, isas_built(), isas_found(), isa_name(cpu_isa()));
}

}  // namespace fathom::cli
