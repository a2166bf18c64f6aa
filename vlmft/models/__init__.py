"""Model families, one file each: loading, the names of the components, and what is special in encoding."""

from vlmft.models.auto import Auto
from vlmft.models.gemma3 import Gemma3, TinyGemma3
from vlmft.models.glm4v import Glm4v, TinyGlm4v
from vlmft.models.glm4v_moe import TinyGlm4vMoe
from vlmft.models.glm46v import TinyGlm46v
from vlmft.models.heads import HeadSpec, LinearHead, MlpHead
from vlmft.models.idefics3 import Idefics3, TinyIdefics3
from vlmft.models.internvl3 import InternVL3, TinyInternVL3
from vlmft.models.llava15 import Llava15, TinyLlava15
from vlmft.models.llava_next import LlavaNext, TinyLlavaNext
from vlmft.models.llava_onevision import LlavaOnevision, TinyLlavaOnevision
from vlmft.models.mistral3 import Mistral3, TinyMistral3
from vlmft.models.mllama import Mllama, TinyMllama
from vlmft.models.molmo2 import Molmo2, TinyMolmo2
from vlmft.models.paligemma import PaliGemma, TinyPaliGemma
from vlmft.models.pixtral import TinyPixtral
from vlmft.models.qwen2vl import Qwen2VL, TinyQwen2VL
from vlmft.models.qwen3vl import Qwen3VL, TinyQwen3VL
from vlmft.models.qwen3vl_moe import TinyQwen3VLMoe
from vlmft.models.qwen25vl import Qwen25VL, TinyQwen25VL
from vlmft.models.qwen35 import Qwen35, TinyQwen35
from vlmft.models.smolvlm import SmolVLM, TinySmolVLM
from vlmft.models.spec import LearningRates, ModelSpec, Precision

__all__ = [
    "Auto",
    "Gemma3",
    "Glm4v",
    "HeadSpec",
    "Idefics3",
    "InternVL3",
    "LearningRates",
    "LinearHead",
    "Llava15",
    "LlavaNext",
    "LlavaOnevision",
    "Mistral3",
    "Mllama",
    "MlpHead",
    "ModelSpec",
    "Molmo2",
    "PaliGemma",
    "Precision",
    "Qwen2VL",
    "Qwen3VL",
    "Qwen25VL",
    "Qwen35",
    "SmolVLM",
    "TinyGemma3",
    "TinyGlm4v",
    "TinyGlm4vMoe",
    "TinyGlm46v",
    "TinyIdefics3",
    "TinyInternVL3",
    "TinyLlava15",
    "TinyLlavaNext",
    "TinyLlavaOnevision",
    "TinyMistral3",
    "TinyMllama",
    "TinyMolmo2",
    "TinyPaliGemma",
    "TinyPixtral",
    "TinyQwen2VL",
    "TinyQwen3VL",
    "TinyQwen3VLMoe",
    "TinyQwen25VL",
    "TinyQwen35",
    "TinySmolVLM",
]
