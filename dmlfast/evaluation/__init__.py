"""Retrieval metrics of an embedding, and the pass over a data set that computes the embedding."""

from __future__ import annotations

from dmlfast.evaluation.retrieval import RetrievalMetrics, embed, evaluate_retrieval

__all__ = ["RetrievalMetrics", "embed", "evaluate_retrieval"]
