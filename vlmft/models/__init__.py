"""Model families, one file each: loading, the names of the components, and what is special in encoding."""

from vlmft.models.qwen25vl import Qwen25VL, TinyQwen25VL
from vlmft.models.spec import LearningRates, ModelSpec, Precision

__all__ = ["LearningRates", "ModelSpec", "Precision", "Qwen25VL", "TinyQwen25VL"]
