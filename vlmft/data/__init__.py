"""Files become samples here. Importing this package is light: the specs import what they need when they work."""

from vlmft.data.demo.digits import Digits
from vlmft.data.demo.shapes import Shapes
from vlmft.data.demo.tasks import DemoClassification, DemoDpo, DemoGrpo, DemoKto
from vlmft.data.demo.videos import DemoCaptions, DemoVideo
from vlmft.data.sources.captions import CaptionsDataset
from vlmft.data.sources.classification import ClassificationDataset
from vlmft.data.sources.folders import ImageFolderDataset
from vlmft.data.sources.huggingface import HFDataset
from vlmft.data.sources.llava import LLaVADataset
from vlmft.data.sources.messages import MessagesDataset
from vlmft.data.sources.preference import PreferenceDataset
from vlmft.data.sources.prompts import PromptDataset
from vlmft.data.sources.sharded import ShardedDataset, WebDataset
from vlmft.data.sources.unpaired import UnpairedDataset
from vlmft.data.spec import DatasetSpec

__all__ = [
    "CaptionsDataset",
    "ClassificationDataset",
    "DatasetSpec",
    "DemoCaptions",
    "DemoClassification",
    "DemoDpo",
    "DemoGrpo",
    "DemoKto",
    "DemoVideo",
    "Digits",
    "HFDataset",
    "ImageFolderDataset",
    "LLaVADataset",
    "MessagesDataset",
    "PreferenceDataset",
    "PromptDataset",
    "Shapes",
    "ShardedDataset",
    "UnpairedDataset",
    "WebDataset",
]
