"""Networks that map images to embeddings."""

from __future__ import annotations

from dmlfast.models.convolutional import ConvolutionalEmbedding
from dmlfast.models.structure import SampleStructure, SampleStructureHead

__all__ = ["ConvolutionalEmbedding", "SampleStructure", "SampleStructureHead"]
