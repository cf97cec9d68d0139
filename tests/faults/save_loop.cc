// Saves one checkpoint after the other, as a run does, until it is killed; each step that is on disk goes to stdout.
//   save_loop OUT FIRST_STEP
#include <unistd.h>

#include <cstdlib>

#include "base/terminal.h"
#include "faults/small_state.h"
#include "train/saver.h"

int main(int argc, char** argv) {
  using namespace fathom;
  if (argc != 3) return 2;
  set_quiet(true);
  const ModelConfig config = test::small_config(9000);
  const Tokenizer tokenizer = Tokenizer::load("bytes");
  const int64_t first = std::atoll(argv[2]);
  Saver saver(argv[1], tokenizer, {}, {SaveMode::async, SaveFailure::stop, {.newest = 2, .every = 250}}, first - 1);
  for (int64_t step = first, told = first - 1;; ++step) {
    const TrainedState state = test::state_of(step, config, Format::f32);
    saver.taken(step);
    saver.save(state);
    if (saver.saved_step() == told) continue;
    told = saver.saved_step();
    if (write(STDOUT_FILENO, &told, sizeof told) != sizeof told) return 1;
  }
}
