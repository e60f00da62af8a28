"""The operators in plain torch: oracle of the tests, rival of the benchmarks, path of last resort."""
