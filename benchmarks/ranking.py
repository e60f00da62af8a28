"""What intra-class ranking is worth: paired training runs over several seeds, with intervals.

    python benchmarks/ranking.py --seeds 10 --steps 400 --jobs 2

Trains each arm with the same seeds: within a seed all arms start from the same network and the
same proxies and see the same batches, so that the differences are paired. Reported is the test
split, whose classes are never trained on, at the step that the class MAP@R of the validation split
selects. Order accuracy is the share of the pairs of strengths of a transform at which a view
becomes less similar to its image under the embedding that is retrieved by; 1/2 is chance.

Every run has its folder, so the program can be interrupted and started again: finished runs are
read and interrupted ones go on. Writes benchmarks/results/ranking.json and prints the table.
"""

from __future__ import annotations

import sys

from paired import Arm, Study

# Three of the twelve faces of a glyph.
FEW = 3
# What the base loss alone does well with in so few steps.
GLYPHS = {"batch_size": 128, "learning_rate": 1e-3, "parameter_rate": 3.0}
METRICS = {
    "Recall@1": ("class", "recall@1"),
    "MAP@R": ("class", "map@r"),
    "order accuracy": ("views", "order_accuracy"),
}

ARMS = {
    "base": Arm({"method": "gar", "weight": 0.0}, None),
    "gar": Arm({"method": "gar"}),
    "ssr": Arm({"method": "ssr"}),
    "gar, detached": Arm({"method": "gar", "detach": True}),
    "gar, ranking only": Arm({"method": "gar", "metric_ratio": 0.0}),
    "gar, metric only": Arm({"method": "gar", "ranking_ratio": 0.0}),
    "gar, weight 0.023": Arm({"method": "gar", "weight": 0.023}),
    "gar, weight 2.3": Arm({"method": "gar", "weight": 2.3}),
    "gar, mean of classes": Arm({"method": "gar", "class_reduction": "mean"}),
    "gar, base on projected": Arm({"method": "gar", "base_on": "projected"}),
    "gar, as released": Arm({"method": "gar", "base_on": "projected", "reference_quirks": True}),
    "few, base": Arm({"method": "gar", "weight": 0.0, "labelled_per_class": FEW}, None),
    "few, gar": Arm({"method": "gar", "labelled_per_class": FEW}, "few, base"),
    "few, ssr": Arm({"method": "ssr", "labelled_per_class": FEW}, "few, base"),
}
STUDY = Study("ranking", __doc__, ARMS, METRICS, {"glyphs": GLYPHS})


if __name__ == "__main__":
    sys.exit(STUDY.main())
