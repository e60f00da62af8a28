"""Losses against learnt proxies of the classes."""

from __future__ import annotations

import torch
from torch import Tensor

from dmlfast._normalize import unit_rows
from dmlfast.ops._arguments import (
    METRICS,
    Pairs,
    check_embeddings,
    check_integers,
    check_number,
    check_option,
    check_positive,
    check_references,
    check_tensor,
    describe,
)
from dmlfast.ops._reduction import REDUCTIONS, nan_marks, reduce, softplus
from dmlfast.ops.contrast_softmax import base_distance, nca_rows
from dmlfast.ops.contrast_sums import ContrastSums, contrast_sums
from dmlfast.reference.distances import fixed_order_sum

_SIMILARITIES = ("cosine", "dot")


def _check_proxies(x: object, labels: object, proxies: object) -> tuple[Tensor, Tensor, Tensor]:
    embeddings = check_embeddings("x", x)
    classes = check_integers("labels", labels, embeddings.shape[0], embeddings.device)
    return embeddings, classes, check_references("proxies", proxies, "x", embeddings)


def proxy_pairs(x: object, labels: object, proxies: object) -> Pairs:
    """Checked embeddings as anchors with one proxy a class, of class 0, 1, ..., as references."""
    embeddings, classes, others = _check_proxies(x, labels, proxies)
    own_classes = torch.arange(others.shape[0], device=embeddings.device)
    return Pairs(embeddings, classes, others, own_classes, None)


def proxy_nca_loss(
    x: Tensor,
    labels: Tensor,
    proxies: Tensor,
    *,
    softmax_scale: float = 1.0,
    metric: str = "sqeuclidean",
    reduction: str = "mean",
) -> Tensor:
    """`nca_loss` against one proxy a class.

    Args:
        x: (N, d) embeddings; float16, bfloat16, float32 or float64. Not normalised here.
        labels: (N,) classes, any integer dtype; one outside [0, C) has no proxy.
        proxies: (C, d) of the dtype and device of `x`, the proxy of class c in row c.
        softmax_scale: greater than 0.
        metric: "sqeuclidean" (default), "euclidean", "cosine" or "dot".
        reduction: "mean" over the embeddings whose class has a proxy, "sum", or "none".

    Returns:
        A scalar, or (N,) losses with reduction "none". Differentiable once in `x` and `proxies`.

    Memory: O((N + C)·d); deterministic.

    Raises:
        TypeError: something is not a tensor or number, or has a wrong dtype.
        ValueError: a wrong shape, device or option.

    Source: Movshovitz-Attias et al., "No fuss distance metric learning using proxies", ICCV 2017,
    with the own proxy in the denominator, as in Teh et al., "ProxyNCA++", ECCV 2020.
    """
    check_option("metric", metric, METRICS)
    check_option("reduction", reduction, REDUCTIONS)
    rows = nca_rows(proxy_pairs(x, labels, proxies), softmax_scale, metric, "all")
    return rows.loss if reduction == "none" else reduce(*rows, reduction)


def proxy_anchor_loss(
    x: Tensor,
    labels: Tensor,
    proxies: Tensor,
    *,
    margin: float = 0.1,
    alpha: float = 32.0,
    offsets: Tensor | None = None,
    metric: str = "cosine",
    reduction: str = "mean",
) -> Tensor | ContrastSums:
    """Proxy-anchor loss: the proxies are the anchors, the embeddings their partners.

    For each proxy log(1 + sum_p exp(-alpha (S_p - margin))) over the embeddings p of its class
    and log(1 + sum_n exp(alpha (S_n + margin))) over all others, with the similarity S = 1 - D
    under "cosine" and S = -D under the other metrics.

    Args:
        x: (N, d) embeddings; float16, bfloat16, float32 or float64. Not normalised here.
        labels: (N,) classes, any integer dtype; of one outside [0, C) an embedding is a negative
            of all proxies.
        proxies: (C, d) of the dtype and device of `x`, the proxy of class c in row c.
        margin: a similarity.
        alpha: greater than 0.
        offsets: (N,) floating, added to both exponents of each embedding; under "cosine" and
            "dot" alone. No gradient flows to it.
        metric: "cosine" (default), "dot", "euclidean" or "sqeuclidean".
        reduction: "mean", that of the first over the proxies that have a positive plus that of
            the second over all C; "sum"; or "none".

    Returns:
        A scalar; with reduction "none" `ContrastSums` of shape (C,): both losses of each proxy and
        the numbers of its positives and negatives. Differentiable once in `x` and `proxies`. A
        scalar is NaN if an embedding is not finite.

    Memory: O((N + C)·d); deterministic.

    Raises:
        TypeError: something is not a tensor or number, or has a wrong dtype.
        ValueError: a wrong shape, device or option.

    Source: Kim et al., "Proxy anchor loss for deep metric learning", CVPR 2020, equation 4.
    """
    margin, alpha = check_number("margin", margin), check_positive("alpha", alpha)
    check_option("metric", metric, METRICS)
    check_option("reduction", reduction, REDUCTIONS)
    embeddings, classes, anchors = _check_proxies(x, labels, proxies)
    own_classes = torch.arange(anchors.shape[0], device=embeddings.device)
    if offsets is None:
        pairs = Pairs(anchors, own_classes, embeddings, classes, None)
        sums = _proxy_sums(pairs, metric, alpha, "both")
    else:
        check_option("metric", metric, _SIMILARITIES)
        added = _check_offsets(offsets, embeddings) / alpha
        sums = _offset_sums(embeddings, classes, anchors, own_classes, added, metric, alpha)
    # The similarity of unit rows is what their dot product is.
    similar_as = "cosine" if metric == "cosine" and offsets is None else "dot"
    pull = sums.positive - alpha * base_distance(margin, similar_as)
    push = sums.negative + alpha * base_distance(-margin, similar_as)
    sums = sums._replace(positive=softplus(pull), negative=softplus(push))
    if reduction == "none":
        return sums
    positive, negative = fixed_order_sum(sums.positive), fixed_order_sum(sums.negative)
    # A reference that is not finite is left out; here it must not go unseen.
    lost = fixed_order_sum(nan_marks(embeddings))
    if reduction == "sum":
        return positive + negative + lost
    with_positive = (sums.positive_count > 0).sum().clamp(min=1)
    return positive / with_positive + negative / max(1, anchors.shape[0]) + lost


def _proxy_sums(pairs: Pairs, metric: str, alpha: float, sides: str) -> ContrastSums:
    return contrast_sums(
        pairs,
        metric=metric,
        positive_form="none" if sides == "negative" else "logsumexp",
        positive_scale=alpha,
        negative_form="none" if sides == "positive" else "logsumexp",
        negative_scale=-alpha,
    )


def _offset_sums(
    x: Tensor,
    labels: Tensor,
    proxies: Tensor,
    own_classes: Tensor,
    added: Tensor,
    metric: str,
    alpha: float,
) -> ContrastSums:
    """Sums with the offsets as one dimension more of a dot product, whose other factor is 1."""
    if metric == "cosine":
        x, proxies = unit_rows(x), unit_rows(proxies)
    anchors = torch.cat([proxies, torch.ones_like(proxies[:, :1])], 1)
    sides = []
    for name, sign in (("positive", -1), ("negative", 1)):
        others = torch.cat([x, (sign * added).to(x.dtype)[:, None]], 1)
        pairs = Pairs(anchors, own_classes, others, labels, None)
        sides.append(_proxy_sums(pairs, "dot", alpha, name))
    return ContrastSums(
        sides[0].positive, sides[1].negative, sides[0].positive_count, sides[1].negative_count
    )


def _check_offsets(value: object, x: Tensor) -> Tensor:
    offsets = check_tensor("offsets", value)
    if not offsets.dtype.is_floating_point:
        raise TypeError(f"offsets: expected a floating dtype, got {describe(offsets)}")
    if offsets.shape != (x.shape[0],) or offsets.device != x.device:
        raise ValueError(
            f"offsets: expected shape ({x.shape[0]},) on {x.device}, got {describe(offsets)}"
        )
    return offsets.detach()
