"""Sample -> Encoded -> Batch: chat template, label mask, micro-batches, collation. Holds processors, never weights."""

from vlmft.encoding.batching import AutoBatching, BatchingSpec, Grouped, Packed, Padded

__all__ = ["AutoBatching", "BatchingSpec", "Grouped", "Packed", "Padded"]
