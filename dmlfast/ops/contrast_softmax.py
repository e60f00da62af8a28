"""Losses that compare the log-sum-exp of the negatives with the positives of each anchor."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmlfast.ops._arguments import Pairs, check_number, check_positive
from dmlfast.ops._partners import call, check_loss, one_positive
from dmlfast.ops._reduction import is_active, reduce, reduce_over_rows, softplus
from dmlfast.ops.contrast import AnchorSums
from dmlfast.ops.contrast_sums import contrast_sums
from dmlfast.ops.neighbors import farthest_positive, hardest_negative


def multi_similarity_loss(
    x: Tensor,
    labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float | None = None,
    metric: str = "cosine",
    positives: str = "all",
    reduction: str = "mean",
) -> Tensor:
    """Multi-similarity loss, with its mining of pairs where `epsilon` is a number.

    log(1 + sum_p exp(-alpha (S_p - base))) / alpha + log(1 + sum_n exp(beta (S_n - base))) / beta
    over the positives p and negatives n of an anchor, with the similarity S = 1 - D under
    "cosine" and S = -D under "dot". Under the Euclidean metrics `base` is a distance: the
    exponents are alpha (D_p - base) and beta (base - D_n).

    Args:
        x: (N, d) anchors; float16, bfloat16, float32 or float64. Not normalised here.
        labels: (N,) classes, any integer dtype.
        references: (M, d) positives and negatives; the batch itself by default.
        reference_labels: (M,) classes of the references.
        self_index: (N,) the row of `references` that is the anchor itself, -1 for none.
        alpha: factor in the exponent of positives, greater than 0.
        beta: factor in the exponent of negatives, greater than 0.
        base: the similarity (the distance under the Euclidean metrics) around which both turn.
        epsilon: where a number, only positives less similar than the most similar negative plus
            `epsilon`, and negatives more similar than the least similar positive minus it, count;
            an anchor without a negative keeps no positive, one without a positive no negative.
            No gradient flows to these bounds. None (default) keeps all pairs.
        metric: "cosine" (default), "euclidean", "sqeuclidean" or "dot".
        positives: "all", "nearest" or "farthest": each anchor's only positive, which then counts
            whatever `epsilon` is, and by which its negatives are kept.
        reduction: "mean" over all N anchors, "sum", or "none".

    Returns:
        A scalar, or (N,) losses with reduction "none"; an anchor without positives keeps its
        negative half and the other way round. float64 for float64 inputs, else float32.
        Differentiable once in `x` and `references`. An anchor that is not finite has loss NaN; a
        reference that is not finite is left out.

    Memory: O((N + M)·d); deterministic.

    Raises:
        TypeError: something is not a tensor or number, or has a wrong dtype.
        ValueError: a wrong shape, device or option.

    Source: Wang et al., "Multi-similarity loss with general pair weighting for deep metric
    learning", CVPR 2019, equation 16.
    """
    alpha, beta = check_positive("alpha", alpha), check_positive("beta", beta)
    base = check_number("base", base)
    if epsilon is not None:
        epsilon = check_number("epsilon", epsilon)
    pairs = check_loss(
        x, labels, references, reference_labels, self_index, metric, positives, reduction
    )
    turn = base_distance(base, metric)
    one = None if positives == "all" else one_positive(pairs, metric, positives)
    positive_bound = negative_bound = None
    if epsilon is not None:
        if one is None:
            positive_bound, negative_bound = _mining_bounds(pairs, metric, epsilon)
        else:
            negative_bound = torch.where(one.exists, one.selected, -math.inf) + epsilon
    sums = contrast_sums(
        pairs,
        metric=metric,
        positive_form="logsumexp" if one is None else "none",
        positive_scale=alpha,
        positive_bound=positive_bound,
        negative_form="logsumexp",
        negative_scale=-beta,
        negative_bound=negative_bound,
    )
    pull = sums.positive
    if one is not None:
        pull = torch.where(one.exists, alpha * one.distance, -math.inf)
    loss = multi_similarity_rows(pull, sums.negative, alpha, beta, turn)
    return reduce_over_rows(loss, reduction)


def multi_similarity_rows(
    pull: Tensor, push: Tensor, alpha: float, beta: float, turn: float
) -> Tensor:
    """(N,) losses from the log-sum-exp of alpha D over positives and of -beta D over negatives."""
    return softplus(pull - alpha * turn) / alpha + softplus(push + beta * turn) / beta


def base_distance(base: float, metric: str) -> float:
    """The distance of two points whose similarity is `base`; `base` if it is a distance."""
    return {"cosine": 1 - base, "dot": -base}.get(metric, base)


def _mining_bounds(pairs: Pairs, metric: str, epsilon: float) -> tuple[Tensor, Tensor]:
    """(N,) distances beyond which positives, and within which negatives, are kept."""
    with torch.no_grad():
        hardest = call(hardest_negative, pairs, metric=metric)
        farthest = call(farthest_positive, pairs, metric=metric)
    reach = torch.where(farthest.index < 0, -math.inf, farthest.distance)
    return hardest.distance - epsilon, reach + epsilon


def info_nce_loss(
    x: Tensor,
    labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    temperature: float = 0.07,
    metric: str = "cosine",
    positives: str = "all",
    reduction: str = "mean",
) -> Tensor | AnchorSums:
    """InfoNCE, also called NT-Xent: the cross-entropy of each positive among all negatives.

    -log(exp(s_p) / (exp(s_p) + sum_n exp(s_n))) with s = -D / temperature, for each positive p of
    an anchor. Other positives are not in the denominator.

    Args:
        x: (N, d) anchors, and further arguments, as in `multi_similarity_loss`.
        labels: (N,) classes.
        references: (M, d) positives and negatives; the batch itself by default.
        reference_labels: (M,) classes of the references.
        self_index: (N,) the row of `references` that is the anchor itself, -1 for none.
        temperature: greater than 0.
        metric: "cosine" (default), "euclidean", "sqeuclidean" or "dot".
        positives: "all", "nearest" or "farthest".
        reduction: "mean" over the positive pairs (0 when there are none), "sum", or "none".

    Returns:
        A scalar; with reduction "none" `AnchorSums` over the positive pairs of each anchor, or
        (N,) losses where an anchor has one positive. An anchor without negatives has loss 0.
        dtypes, gradients, memory and errors as in `multi_similarity_loss`.

    Source: van den Oord et al., "Representation learning with contrastive predictive coding",
    2018; Chen et al., "A simple framework for contrastive learning", ICML 2020.
    """
    temperature = check_positive("temperature", temperature)
    pairs = check_loss(
        x, labels, references, reference_labels, self_index, metric, positives, reduction
    )
    if positives == "all":
        sums = contrast_sums(
            pairs,
            metric=metric,
            positive_form="softplus",
            positive_scale=1 / temperature,
            positive_bound=_negatives(pairs, metric, temperature),
        )
        rows = AnchorSums(sums.positive, sums.positive_count)
        return rows if reduction == "none" else reduce(*rows, reduction)
    loss, exists = _one_among_negatives(pairs, metric, positives, temperature)
    return loss if reduction == "none" else reduce(loss, exists, reduction)


def _negatives(pairs: Pairs, metric: str, temperature: float) -> Tensor:
    """(N,) log-sum-exp of -D / temperature over the negatives."""
    return contrast_sums(
        pairs, metric=metric, negative_form="logsumexp", negative_scale=-1 / temperature
    ).negative


def _one_among_negatives(
    pairs: Pairs, metric: str, positives: str, temperature: float
) -> tuple[Tensor, Tensor]:
    """(N,) cross-entropies of the only positive among the negatives, and whether there is one."""
    one = one_positive(pairs, metric, positives)
    excess = one.distance / temperature + _negatives(pairs, metric, temperature)
    return softplus(torch.where(one.exists, excess, -math.inf)), one.exists


def supcon_loss(
    x: Tensor,
    labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    temperature: float = 0.1,
    metric: str = "cosine",
    positives: str = "all",
    reduction: str = "mean",
) -> Tensor:
    """Supervised contrastive loss: the mean over positives of their cross-entropy among all.

    -mean_p log(exp(s_p) / sum_j exp(s_j)) with s = -D / temperature; p runs over the positives of
    an anchor and j over its positives and negatives.

    Args:
        x: (N, d) anchors, and further arguments, as in `multi_similarity_loss`.
        labels: (N,) classes.
        references: (M, d) positives and negatives; the batch itself by default.
        reference_labels: (M,) classes of the references.
        self_index: (N,) the row of `references` that is the anchor itself, -1 for none.
        temperature: greater than 0.
        metric: "cosine" (default), "euclidean", "sqeuclidean" or "dot".
        positives: "all", "nearest" or "farthest"; the other positives then count nowhere.
        reduction: "mean" over the anchors with a loss greater than 0 (0 when there are none),
            "sum", or "none".

    Returns:
        A scalar, or (N,) losses with reduction "none"; 0 for an anchor without positives, and for
        all when no anchor has a negative. dtypes, gradients, memory and errors as in
        `multi_similarity_loss`.

    Source: Khosla et al., "Supervised contrastive learning", NeurIPS 2020, equation 2.
    """
    temperature = check_positive("temperature", temperature)
    pairs = check_loss(
        x, labels, references, reference_labels, self_index, metric, positives, reduction
    )
    if positives == "all":
        loss = _mean_among_all(pairs, metric, temperature)
    else:
        loss, _ = _one_among_negatives(pairs, metric, positives, temperature)
    return loss if reduction == "none" else reduce(loss, is_active(loss), reduction)


def _mean_among_all(pairs: Pairs, metric: str, temperature: float) -> Tensor:
    spread = contrast_sums(
        pairs,
        metric=metric,
        positive_form="logsumexp",
        positive_scale=-1 / temperature,
        negative_form="logsumexp",
        negative_scale=-1 / temperature,
    )
    pull = contrast_sums(pairs, metric=metric, positive_form="sum")
    return supcon_rows(
        pull.positive / temperature,
        spread.positive,
        spread.negative,
        spread.positive_count,
        spread.negative_count,
    )


def supcon_rows(
    pull: Tensor,
    positive: Tensor,
    negative: Tensor,
    positive_count: Tensor,
    negative_count: Tensor,
) -> Tensor:
    """(N,) supervised contrastive losses.

    Args:
        pull: (N,) sums of D / temperature over the positives.
        positive: (N,) log-sum-exp of -D / temperature over the positives.
        negative: (N,) likewise over the negatives.
        positive_count: (N,) numbers of positives.
        negative_count: (N,) numbers of negatives.
    """
    # One partner among itself has cross-entropy 0, which rounding would make active.
    valid = (positive_count > 0) & (positive_count + negative_count > 1)
    valid = valid & (negative_count.sum() > 0)
    total = torch.logaddexp(torch.where(valid, positive, 0.0), negative)
    return torch.where(valid, pull / positive_count.clamp(min=1) + total, 0.0)


def nca_loss(
    x: Tensor,
    labels: Tensor,
    references: Tensor | None = None,
    reference_labels: Tensor | None = None,
    *,
    self_index: Tensor | None = None,
    softmax_scale: float = 1.0,
    metric: str = "sqeuclidean",
    positives: str = "all",
    reduction: str = "mean",
) -> Tensor:
    """Neighbourhood components analysis: the probability that a neighbour has the own class.

    -log(sum_p exp(s_p) / sum_j exp(s_j)) with s = -softmax_scale * D; p runs over the positives
    of an anchor and j over its positives and negatives.

    Args:
        x: (N, d) anchors, and further arguments, as in `multi_similarity_loss`.
        labels: (N,) classes.
        references: (M, d) positives and negatives; the batch itself by default.
        reference_labels: (M,) classes of the references.
        self_index: (N,) the row of `references` that is the anchor itself, -1 for none.
        softmax_scale: greater than 0.
        metric: "sqeuclidean" (default), "euclidean", "cosine" or "dot".
        positives: "all", "nearest" or "farthest"; the other positives then count nowhere.
        reduction: "mean" over the anchors with a positive (0 when there are none), "sum", or
            "none".

    Returns:
        A scalar, or (N,) losses with reduction "none", 0 for an anchor without positives. dtypes,
        gradients, memory and errors as in `multi_similarity_loss`.

    Source: Goldberger et al., "Neighbourhood components analysis", NeurIPS 2004, with the
    logarithm of each anchor's probability.
    """
    pairs = check_loss(
        x, labels, references, reference_labels, self_index, metric, positives, reduction
    )
    rows = nca_rows(pairs, softmax_scale, metric, positives)
    return rows.loss if reduction == "none" else reduce(*rows, reduction)


def nca_rows(pairs: Pairs, softmax_scale: float, metric: str, positives: str) -> AnchorSums:
    """Losses of the anchors, and whether each has a positive."""
    scale = check_positive("softmax_scale", softmax_scale)
    if positives != "all":
        loss, exists = _one_among_negatives(pairs, metric, positives, 1 / scale)
        return AnchorSums(loss, exists.long())
    sums = contrast_sums(
        pairs,
        metric=metric,
        positive_form="logsumexp",
        positive_scale=-scale,
        negative_form="logsumexp",
        negative_scale=-scale,
    )
    valid = sums.positive_count > 0
    loss = softplus(torch.where(valid, sums.negative - sums.positive, -math.inf))
    return AnchorSums(loss, valid.long())
