"""Sample -> Encoded -> Batch: chat template, label mask, micro-batches, collation. Holds processors, never weights."""

from vlmft.encoding.batching import BatchingSpec, Grouped, Padded

__all__ = ["BatchingSpec", "Grouped", "Padded"]
