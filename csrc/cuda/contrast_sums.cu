#include "contrast_sums_forward.cuh"
