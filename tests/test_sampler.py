"""Tests of the sampler of dmlfast.data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from data_cases import generator
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from dmlfast.data import MPerClassSampler

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("PIL")


def sampler(labels: Tensor, **settings: Any) -> MPerClassSampler:
    defaults = {"batch_size": 6, "samples_per_class": 2, "batches": 5, "generator": generator()}
    return MPerClassSampler(labels, **{**defaults, **settings})


# 7 classes of 1 to 7 samples, shuffled, with labels at both ends of the range.
VALUES = torch.tensor([-(2**63), -5, 0, 1, 2, 10**12, 2**63 - 1])
LABELS = VALUES.repeat_interleave(torch.arange(1, 8))[torch.randperm(28, generator=generator(9))]


class TestMPerClassSampler:
    @pytest.mark.parametrize(
        ("batch_size", "samples_per_class"), [(6, 2), (7, 1), (28, 4), (1, 1), (63, 9)]
    )
    def test_a_batch_has_the_asked_samples_of_distinct_classes(
        self, batch_size: int, samples_per_class: int
    ) -> None:
        drawn = sampler(LABELS, batch_size=batch_size, samples_per_class=samples_per_class)
        for _ in range(20):
            batch = drawn.sample()
            assert batch.dtype == torch.int64
            counts = LABELS[batch].unique(return_counts=True)[1]
            assert counts.tolist() == [samples_per_class] * (batch_size // samples_per_class)

    def test_only_a_class_with_too_few_samples_repeats_one(self) -> None:
        drawn = sampler(LABELS, batch_size=28, samples_per_class=4)
        for _ in range(50):
            batch = drawn.sample()
            for label in LABELS[batch].unique():
                members = batch[LABELS[batch] == label]
                if (label == LABELS).sum() >= 4:
                    assert len(members.unique()) == 4

    def test_a_short_class_gives_all_its_samples_in_time(self) -> None:
        labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
        drawn = sampler(labels, batch_size=8, samples_per_class=4)
        seen = torch.cat([drawn.sample() for _ in range(50)])
        counts = seen.bincount(minlength=8)
        assert (counts[:3] > 40).all()

    def test_every_class_is_drawn_equally_often(self) -> None:
        drawn = sampler(LABELS, batch_size=3, samples_per_class=1)
        labels = torch.cat([LABELS[drawn.sample()] for _ in range(1400)])
        counts = labels.unique(return_counts=True)[1]
        # Binomial with mean 600 and deviation 18.5.
        assert (counts - 600).abs().max() < 5 * 18.5

    def test_every_sample_of_a_class_is_drawn_equally_often(self) -> None:
        labels = torch.tensor([0] * 5 + [1] * 9)
        drawn = sampler(labels, batch_size=4, samples_per_class=2)
        counts = torch.cat([drawn.sample() for _ in range(1800)]).bincount()
        assert (counts[:5] - 720).abs().max() < 5 * 20.8
        assert (counts[5:] - 400).abs().max() < 5 * 17.7

    def test_a_restored_generator_gives_the_same_batches(self) -> None:
        source = generator()
        drawn = sampler(LABELS, generator=source)
        drawn.sample()
        state = source.get_state()
        expected = [drawn.sample().tolist() for _ in range(3)]
        resumed = sampler(LABELS, generator=generator(123))
        resumed.generator.set_state(state)
        assert [resumed.sample().tolist() for _ in range(3)] == expected

    def test_iterating_draws_the_batches_of_sample_one_at_a_time(self) -> None:
        source = generator()
        batches = iter(sampler(LABELS, generator=source))
        other = sampler(LABELS)
        for batch in batches:
            assert batch == other.sample().tolist()
            assert torch.equal(source.get_state(), other.generator.get_state())

    def test_one_pass_gives_the_asked_number_of_batches(self) -> None:
        drawn = sampler(LABELS, batches=4)
        assert len(drawn) == 4
        assert len(list(drawn)) == 4

    def test_two_passes_differ(self) -> None:
        drawn = sampler(LABELS)
        assert list(drawn) != list(drawn)

    def test_serves_as_batch_sampler_of_a_data_loader(self) -> None:
        loader = DataLoader(TensorDataset(torch.arange(28)), batch_sampler=sampler(LABELS))
        assert [batch.tolist() for (batch,) in loader] == list(sampler(LABELS))

    def test_all_randomness_comes_from_the_generator(self) -> None:
        before = torch.get_rng_state()
        sampler(LABELS, batch_size=28, samples_per_class=4).sample()
        assert torch.equal(before, torch.get_rng_state())

    @pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
    def test_labels_may_be_any_integers(self, dtype: torch.dtype) -> None:
        labels = torch.tensor([0, 0, 1, 1, 2, 2])
        assert list(sampler(labels.to(dtype))) == list(sampler(labels))

    @pytest.mark.parametrize("offset", [2**24, 2**53, -(2**62)])
    def test_labels_that_no_float_tells_apart_are_different_classes(self, offset: int) -> None:
        labels = torch.arange(12) % 4
        assert list(sampler(labels + offset)) == list(sampler(labels))

    @pytest.mark.parametrize(
        ("settings", "error", "message"),
        [
            ({"batch_size": 7}, ValueError, "batch_size: expected a multiple of .* got 7"),
            ({"batch_size": 0}, ValueError, "batch_size: expected at least 1, got 0"),
            ({"samples_per_class": -1}, ValueError, "samples_per_class: expected at least 1"),
            ({"batches": 0}, ValueError, "batches: expected at least 1"),
            ({"batches": 1.5}, TypeError, "batches: expected an integer, got 1.5"),
            ({"batch_size": True}, TypeError, "batch_size: expected an integer, got True"),
            ({"batch_size": 16}, ValueError, "labels: expected at least 8 classes .* got 7"),
            ({"labels": LABELS[:, None]}, ValueError, r"labels: expected \(N,\), got \(28, 1\)"),
            ({"labels": LABELS[:0]}, ValueError, "labels: expected at least 3 classes .* got 0"),
            (
                {"labels": LABELS.double()},
                TypeError,
                "labels: expected an .* torch.float64",
            ),
            ({"labels": LABELS > 0}, TypeError, "labels: expected an .* torch.bool"),
        ],
    )
    def test_what_cannot_be_drawn_is_refused(
        self, settings: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            sampler(**{"labels": LABELS, **settings})
