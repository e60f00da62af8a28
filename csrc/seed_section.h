// How the weights of k-means++ are summed, alike on every device, so that equal numbers draw equal
// rows: in ascending order within sections of so many rows, and then over the sections before.
#pragma once

#include <cstdint>

namespace dmlfast {

constexpr int64_t kSeedSection = 256;

}  // namespace dmlfast
