"""Networks that map images to embeddings."""

from __future__ import annotations

from dmlfast.models.convolutional import ConvolutionalEmbedding

__all__ = ["ConvolutionalEmbedding"]
