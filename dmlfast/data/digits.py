"""Scanned digits labelled even or odd: does an embedding keep apart what its labels do not?"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from dmlfast._optional import require
from dmlfast.data.dataset import DataSet, Split
from dmlfast.data.transforms import RandomAffine

# Shares of every digit that go to train and to validation; the rest goes to test.
SHARES = (1 / 2, 1 / 8)
# In "digits-unseen" nothing of a digit that is trained on is left for test.
SHARES_UNSEEN = (4 / 5, 1 / 5)
SEEN_DIGITS = 6
SEED = 0
AUGMENT = RandomAffine(rotation=10, scale=0.1, shift=1)


def load(*, unseen: bool) -> DataSet:
    """The 1797 scans of scikit-learn's `load_digits`, (N, 1, 8, 8).

    The class is the parity (0 even, 1 odd), the sub-class the digit. Within a split the images
    keep the order of the source.

    Args:
        unseen: False splits every digit by `SHARES`. True splits digits 0-5 over train and
            validation by `SHARES_UNSEEN` and keeps all of 6-9 for test.

    Raises:
        ImportError: if scikit-learn is not installed.
    """
    source = require("sklearn.datasets", "train").load_digits()
    images = torch.tensor(source.images, dtype=torch.float32)[:, None] / 16
    digits = torch.tensor(source.target, dtype=torch.int64)
    if unseen:
        part = _stratified(digits, SHARES_UNSEEN)
        part[digits >= SEEN_DIGITS] = 2
    else:
        part = _stratified(digits, SHARES)
    train, validation, test = (
        Split(images[chosen], digits[chosen] % 2, digits[chosen])
        for chosen in (part == 0, part == 1, part == 2)
    )
    return DataSet(
        name="digits-unseen" if unseen else "digits",
        train=train,
        validation=validation,
        test=test,
        class_names=("even", "odd"),
        subclass_names=tuple(str(digit) for digit in range(10)),
        augment=AUGMENT,
    )


def _stratified(digits: Tensor, shares: tuple[float, float]) -> Tensor:
    """The part (N,) int64 of every image: 0 and 1 by `shares` of each digit, else 2."""
    # Python keeps the numbers of a seed the same in every version.
    numbers = random.Random(SEED)
    keys = torch.tensor([numbers.random() for _ in range(len(digits))], dtype=torch.float64)
    part = torch.full_like(digits, 2)
    for digit in range(10):
        members = (digits == digit).nonzero().flatten()
        members = members[keys[members].argsort()]
        train, held_out = (round(total * len(members)) for total in (shares[0], sum(shares)))
        part[members[:train]] = 0
        part[members[train:held_out]] = 1
    return part
