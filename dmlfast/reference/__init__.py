"""The operators in plain torch: oracle of tests, rival of benchmarks, path of last resort."""
