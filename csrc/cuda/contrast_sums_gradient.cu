#include "contrast_sums_gradient.cuh"
