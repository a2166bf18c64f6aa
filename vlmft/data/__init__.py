"""Files become samples here. Importing this package is light: the specs import what they need when they work."""

from vlmft.data.demo.digits import Digits
from vlmft.data.demo.shapes import Shapes
from vlmft.data.sources.llava import LLaVADataset
from vlmft.data.spec import DatasetSpec

__all__ = ["DatasetSpec", "Digits", "LLaVADataset", "Shapes"]
