// Pictures of what ranks do over time: of a simulation, or of what was measured.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "parallel/pipeline.h"

namespace fathom {

// An SVG file: a row for each rank, a box for each operation with its chunk's number, forward and backward and the two
// directions in colours of their own, gray where a rank waits. `unit`: of the times below the axis, "ms" or nothing.
std::string schedule_svg(const PipelineSchedule& schedule, const std::vector<std::vector<Simulation::Span>>& spans,
                         const std::string& title, const std::string& unit);

// A line for each rank, `columns` wide: F, B, I, W, and X for F&B; small letters in direction 1, '.' where it waits.
std::string schedule_drawing(const PipelineSchedule& schedule, const std::vector<std::vector<Simulation::Span>>& spans,
                             int columns);

// What a rank did in a step, in seconds from its beginning: pieces in order.
struct MeasuredRank {
  std::vector<PipelineTrace::Piece> pieces;
  std::vector<PipelineTrace::Span> sums;  // of gradients, over ranks
};
// The same of what was measured: a box for each piece of a pass, waits for messages in red, for another stage in gray.
std::string schedule_svg(std::span<const MeasuredRank> ranks, const std::string& title);
// ':' where it waits for messages, '.' for another stage, S for sums of gradients.
std::string schedule_drawing(std::span<const MeasuredRank> ranks, int columns);

}  // namespace fathom
