"""The stages of `python benchmarks/gpu.py`: what runs on a machine with an NVIDIA GPU.

What drives imports nothing of dmlfast, which may not be built yet: `run` has the stages of `stages`
run in `processes`, the timing process under `watch`, what they print read by `parsing`, the figures
held against `bars` and written by `report`. What measures runs in processes of its own, which may
crash or hang without taking the other figures along: `device`, `operators`, `determinism`,
`exactness` and `speed`, with its `cases`, `clock` and `data`.
"""
