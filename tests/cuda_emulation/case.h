// What every program reads of a case and writes of its results.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <type_traits>
#include <vector>

#include "engine/matrix.h"

namespace dmlfast::cuda {

// What results hold before: those that nobody wrote shall not be zeros.
constexpr int kUntouched = -7;

template <class T>
std::vector<T> read(std::ifstream& file, int64_t count) {
  // Exactly as long as needed, so that the address sanitizer sees the first element too many.
  std::vector<T> data(count);
  file.read(reinterpret_cast<char*>(data.data()), count * sizeof(T));
  if (!file) {
    std::fprintf(stderr, "the case file is too short\n");
    std::exit(1);
  }
  return data;
}

template <class T>
void write(std::ofstream& file, const std::vector<T>& data) {
  file.write(reinterpret_cast<const char*>(data.data()), data.size() * sizeof(T));
}

// Exactly as long as needed, again. Doubles, to be aligned; not a number wherever not written.
inline std::vector<double> memory_of(int64_t bytes) {
  return std::vector<double>((bytes + 7) / 8, NAN);
}

template <class T>
Rows<T> rows_of(const std::vector<T>& data, int64_t rows, int64_t columns) {
  return {data.data(), rows, columns, columns, 1};
}

template <class T>
constexpr ElementType kElementType =
    std::is_same_v<T, double> ? ElementType::float64 : ElementType::float32;

template <class T>
AnyRows any_rows_of(const std::vector<T>& data, int64_t rows, int64_t columns) {
  return {data.data(), kElementType<T>, rows, columns, columns, 1};
}

template <class T>
AnyResult any_result_of(std::vector<T>& data, int64_t columns) {
  return {data.data(), kElementType<T>, columns};
}

// Calls `run` with the header, and the files of the case and the results.
template <class Header, class Run>
int run_case(int argc, char** argv, const Run& run) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: %s CASE RESULT\n", argv[0]);
    return 1;
  }
  std::ifstream in(argv[1], std::ios::binary);
  std::ofstream out(argv[2], std::ios::binary);
  const Header header = read<Header>(in, 1)[0];
  run(header, in, out);
  return 0;
}

// Calls `run` with a value of the rows' type.
template <class Run>
void run_with_type(bool is_double, const Run& run) {
  if (is_double) {
    run(double{});
  } else {
    run(float{});
  }
}

}  // namespace dmlfast::cuda
