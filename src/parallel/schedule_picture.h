// Pictures of what ranks do over time: of a simulation, or of what was measured.
#pragma once

#include <string>
#include <vector>

#include "parallel/pipeline_schedule.h"

namespace fathom {

// An SVG file: a row for each rank, a box for each operation with its chunk's number, forward and backward and the two
// directions in colours of their own, gray where a rank waits. `unit`: of the times below the axis, "ms" or nothing.
std::string schedule_svg(const PipelineSchedule& schedule, const std::vector<std::vector<Simulation::Span>>& spans,
                         const std::string& title, const std::string& unit);

// A line for each rank, `columns` wide: F, B, I, W, and X for F&B; small letters in direction 1, '.' where it waits.
std::string schedule_drawing(const PipelineSchedule& schedule, const std::vector<std::vector<Simulation::Span>>& spans,
                             int columns);

}  // namespace fathom
