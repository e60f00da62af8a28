"""What a structure embedding is worth: paired training runs over several seeds, with intervals.

    python benchmarks/structure.py --seeds 5 --jobs 2
    python benchmarks/structure.py --data digits --out benchmarks/results/structure-digits.json

Trains each arm with the same seeds: within a seed all arms start from the same network and heads
and see the same batches and draws, so that the differences are paired. Reported is the test split
at the step that the class MAP@R of the validation split selects, by plain Euclidean distance.

Retrieval is plain, by the adaptive distance to all references with the learnt weights, and with an
oracle's, which are made of the labels of the test split: what weights of the dimensions could be
worth. The gain is that of the learnt weights over plain retrieval in the same run, and the spread
the deviation of a learnt weight over the images. Without a learnt structure all weights are 1.

Every run has its folder, so the program can be interrupted and started again: finished runs are
read and interrupted ones go on. Writes benchmarks/results/structure.json and prints the table.
"""

from __future__ import annotations

import sys
from typing import Any

from paired import Arm, Study

# What the base loss alone does well with in so few steps, as in ranking.py.
GLYPHS = {"batch_size": 128, "learning_rate": 1e-3}
METRICS = {
    "Recall@1": ("class", "recall@1"),
    "MAP@R": ("class", "map@r"),
    "structure Recall@1": ("structure", "recall@1"),
    "structure MAP@R": ("structure", "map@r"),
    "gain in Recall@1": ("structure", "recall@1", "class"),
    "gain in MAP@R": ("structure", "map@r", "class"),
    "spread": ("weights", "deviation"),
    "oracle Recall@1": ("oracle", "recall@1"),
    "oracle MAP@R": ("oracle", "map@r"),
}
WEIGHT = 0.2


def nasa(weight: float = WEIGHT, **settings: Any) -> Arm:
    return Arm({"method": "nasa", "weight": weight, **settings})


def namr(clusters: int) -> Arm:
    return Arm({"method": "namr", "weight": WEIGHT, "clusters": clusters})


ARMS = {
    "base": Arm({"method": "nasa", "weight": 0.0}, None),
    **{f"nasa, weight {weight:g}": nasa(weight) for weight in (0.05, 0.1, 0.2, 0.5, 2.0)},
    **{f"namr, {clusters} clusters": namr(clusters) for clusters in (1, 4, 8)},
    "nasa, fixed structure": nasa(fixed_structure=True),
    "nasa, structure alone": nasa(structure_gradient="structure"),
    # This library's own: weights by the variance around a sample, of its class.
    "local variance": nasa(0.0, local_weight=0.2, least=0.05),
    "local variance, structure alone": nasa(
        0.0, local_weight=0.2, least=0.05, structure_gradient="structure"
    ),
}
STUDY = Study("structure", __doc__, ARMS, METRICS, {"glyphs": GLYPHS})


if __name__ == "__main__":
    sys.exit(STUDY.main())
