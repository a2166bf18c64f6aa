"""The families that the matrix tests hold, each with what is written down by hand about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import PaliGemmaProcessor

from tests.support import compose, save_noise
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoder
from vlmft.models import ModelSpec
from vlmft.types import Image, Message, Part, Sample, Video


@dataclass(frozen=True)
class Family:
    """One family as `model=tiny_<name>`."""

    name: str
    model_class: str
    supervised: tuple[str, str]
    """What is trained of a conversation whose answers are "red" and "a black shape"."""
    tower: str
    """Where the names of its parameters begin; `projector` may lie within."""
    projector: tuple[str, ...]
    tower_norms: str
    tower_linear: str
    """Its norms and linear modules, as regular expressions over the names of modules."""
    tower_blocks: str = r"(^|\.)(?:blocks|layers?)\.(\d+)\."
    llm: tuple[str, ...] = ("model.language_model.", "lm_head.")
    llm_linear: str = (
        r"(^|\.)layers\.\d+\."
        r"((?:self|cross)_attn\.[qkvo]_proj|mlp\.(?:shared_experts\.)?(gate|up|gate_up|down)_proj)$"
    )
    """The LLM's linear modules, without its head."""
    llm_attention: str = "sdpa"
    """What its LLM computes with where the YAML says sdpa."""
    unreached: str | None = None
    """What of it no gradient reaches, as a regular expression over names."""
    experts: tuple[str, ...] = ()
    """Modules of the LLM that hold a mixture's experts: two 3-D parameters each."""
    refuses: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Shipped recipes that it cannot be trained under, each with what is said of it, as a regular expression."""
    why_refused: str = ""
    """The same for docs/models.md: the recipes, and what stands in the way."""
    video: bool = True
    slice: tuple[str, ...] = ("fft", "lora_vt_llm", "ln_vt_lora_llm_nf4")
    """The recipes that `make test` takes it through; `make test-slow` takes it through all."""
    mixed: bool = True
    """Its own processor can take pictures and videos together, to be compared with."""
    asked_by: str | None = None
    """What its own template has to be told, or what a prompt has to end in, for an answer as it is trained."""
    unpacked: str | None = None
    """Why it takes no packs (`batching=packed`); None: it does."""
    prefix: bool = False
    """It takes one question about pictures and its answer; no text alone, no second question."""

    @property
    def spec(self) -> ModelSpec:
        return compose(f"model=tiny_{self.name}").model


QWEN_END, SIGLIP_LINEAR = "<|im_end|>", r"self_attn\.(q|k|v|out)_proj$|mlp\.fc[12]$"
QWEN_TOWER = {"tower": "model.visual.", "projector": ("model.visual.merger.",)}
TOWER = {"tower": "model.vision_tower.", "projector": ("model.multi_modal_projector.",)}
IDEFICS_TOWER = {"tower": "model.vision_model.", "projector": ("model.connector.",)}
PIXTRAL_TOWER: dict[str, Any] = {
    **TOWER,
    "tower_norms": r"(attention|ffn)_norm$|ln_pre$",
    "tower_linear": r"attention\.[qkvo]_proj$|feed_forward\.(gate|up|down)_proj$",
    "video": False,
    "slice": ("lora_vt_llm",),
}
GLM_TOWER: dict[str, Any] = {
    "tower": "model.visual.",
    "projector": ("model.visual.downsample.", "model.visual.merger."),
    "tower_norms": r"blocks\.\d\.norm[12]$|post_(conv_)?layernorm$",
    "tower_linear": r"attn\.(qkv|proj)$|mlp\.(gate|up|down)_proj$",
    "slice": ("lora_vt_llm",),
}
NORMS = r"layer_norm[12]$|post_layernorm$"
OWN_MASKS = "its pictures' tokens see each other by masks that know of one sample a row"


def _answers(end: str) -> tuple[str, str]:
    return f"red{end}", f"a black shape{end}"


NO_FEWER_BITS = r"recipe\.llm\.base: (nf4|int8) keeps linear layers alone; the experts of this mixture"
MIXTURE: dict[str, Any] = {
    "refuses": {
        "lora_llm_nf4": NO_FEWER_BITS,
        "lora_llm_int8": NO_FEWER_BITS,
        "lora_vt_llm_nf4": NO_FEWER_BITS,
        "ln_vt_lora_llm_nf4": NO_FEWER_BITS,
        "fft_vt_lora_llm_nf4": NO_FEWER_BITS,
        "dora_llm": r"recipe\.llm\.dora: does not work on the experts of a mixture .* exclude=\[experts\]",
    },
    "why_refused": "`lora_llm_nf4`, `lora_llm_int8`, `lora_vt_llm_nf4`, `ln_vt_lora_llm_nf4`, `fft_vt_lora_llm_nf4`: "
    "bitsandbytes keeps linear layers in fewer bits, and experts are 3-D parameters; `dora_llm`: PEFT has no "
    "magnitudes for them",
}

FAMILIES = [
    Family(
        "qwen2vl",
        "Qwen2VLForConditionalGeneration",
        _answers(QWEN_END),
        **QWEN_TOWER,
        tower_norms=r"blocks\.\d\.norm[12]$",
        tower_linear=r"attn\.(qkv|proj)$|mlp\.fc[12]$",
    ),
    Family(
        "qwen25vl",
        "Qwen2_5_VLForConditionalGeneration",
        _answers(QWEN_END),
        **QWEN_TOWER,
        tower_norms=r"blocks\.\d\.norm[12]$",
        tower_linear=r"attn\.(qkv|proj)$|mlp\.(gate|up|down)_proj$",
    ),
    Family(
        "qwen3vl",
        "Qwen3VLForConditionalGeneration",
        _answers(QWEN_END),
        tower="model.visual.",
        projector=("model.visual.merger.", "model.visual.deepstack_merger_list."),
        tower_norms=r"blocks\.\d\.norm[12]$",
        tower_linear=r"attn\.(qkv|proj)$|mlp\.linear_fc[12]$",
    ),
    Family(
        "qwen3vl_moe",
        "Qwen3VLMoeForConditionalGeneration",
        _answers(QWEN_END),
        tower="model.visual.",
        projector=("model.visual.merger.", "model.visual.deepstack_merger_list."),
        tower_norms=r"blocks\.\d\.norm[12]$",
        tower_linear=r"attn\.(qkv|proj)$|mlp\.linear_fc[12]$",
        experts=("model.language_model.layers.1.mlp.experts",),
        **MIXTURE,
    ),
    Family(
        "qwen35",
        "Qwen3_5ForConditionalGeneration",
        _answers(QWEN_END),
        **QWEN_TOWER,
        tower_norms=r"blocks\.\d\.norm[12]$",
        tower_linear=r"attn\.(qkv|proj)$|mlp\.linear_fc[12]$",
        llm_linear=r"layers\.\d+\.(self_attn\.[qkvo]_proj|linear_attn\.(in_proj_(qkv|z|b|a)|out_proj)"
        r"|mlp\.(gate|up|down)_proj)$",
        asked_by="enable_thinking=False",
        slice=("lora_vt_llm",),
        unpacked="its linear layers carry their state from one sample of a row into the next",
    ),
    Family(
        "internvl3",
        "InternVLForConditionalGeneration",
        _answers(QWEN_END),
        **TOWER,
        tower_norms=r"layernorm_(before|after)$",
        tower_linear=r"attention\.([qkv]_proj|projection_layer)$|mlp\.fc[12]$",
    ),
    Family(
        "gemma3",
        "Gemma3ForConditionalGeneration",
        _answers("<end_of_turn>"),
        **TOWER,
        tower_norms=NORMS,
        tower_linear=SIGLIP_LINEAR,
        video=False,
        unpacked=OWN_MASKS,
    ),
    Family(
        "smolvlm",
        "SmolVLMForConditionalGeneration",
        _answers("<end_of_utterance>"),
        **IDEFICS_TOWER,
        llm=("model.text_model.", "lm_head."),
        tower_norms=NORMS,
        tower_linear=SIGLIP_LINEAR,
        mixed=False,
    ),
    Family(
        "idefics3",
        "Idefics3ForConditionalGeneration",
        _answers("<end_of_utterance>"),
        **IDEFICS_TOWER,
        llm=("model.text_model.", "lm_head."),
        tower_norms=NORMS,
        tower_linear=SIGLIP_LINEAR,
        video=False,
        slice=("lora_vt_llm",),
    ),
    Family(
        "llava_onevision",
        "LlavaOnevisionForConditionalGeneration",
        _answers(QWEN_END),
        tower="model.vision_tower.",
        projector=("model.multi_modal_projector.", "model.image_newline"),
        tower_norms=NORMS,
        tower_linear=SIGLIP_LINEAR,
        unreached=r"vision_tower\..*post_layernorm\.",
    ),
    Family(
        "llava15",
        "LlavaForConditionalGeneration",
        _answers("</s>"),
        **TOWER,
        tower_norms=NORMS + r"|pre_layrnorm$",
        tower_linear=SIGLIP_LINEAR,
        unreached=r"vision_tower\..*(encoder\.layers\.2|post_layernorm)\.",
        video=False,
    ),
    Family(
        "llava_next",
        "LlavaNextForConditionalGeneration",
        _answers("</s>"),
        tower="model.vision_tower.",
        projector=("model.multi_modal_projector.", "model.image_newline"),
        tower_norms=NORMS + r"|pre_layrnorm$",
        tower_linear=SIGLIP_LINEAR,
        unreached=r"vision_tower\..*(encoder\.layers\.2|post_layernorm)\.",
        video=False,
        slice=("lora_vt_llm",),
    ),
    Family(
        "mllama",
        "MllamaForConditionalGeneration",
        _answers("<|eot_id|>"),
        tower="model.vision_model.",
        projector=("model.multi_modal_projector.",),
        tower_norms=r"layernorm(_pre|_post)?$",
        tower_linear=r"self_attn\.[qkvo]_proj$|mlp\.fc[12]$",
        tower_blocks=r"(global_transformer\.layers)\.(\d+)\.",
        video=False,
        slice=("lora_vt_llm",),
        unpacked="its cross attention tells samples apart by rows",
    ),
    Family("mistral3", "Mistral3ForConditionalGeneration", _answers("</s>"), **PIXTRAL_TOWER),
    Family("pixtral", "LlavaForConditionalGeneration", _answers("</s>"), **PIXTRAL_TOWER),
    Family("glm4v", "Glm4vForConditionalGeneration", _answers("<|endoftext|>"), **GLM_TOWER),
    Family(
        "glm46v",
        "Glm46VForConditionalGeneration",
        _answers("<|endoftext|>"),
        **GLM_TOWER,
        asked_by=r"'<|assistant|>\n<think></think>\n'",
    ),
    Family(
        "glm4v_moe",
        "Glm4vMoeForConditionalGeneration",
        _answers("<|endoftext|>"),
        **GLM_TOWER,
        experts=("model.language_model.layers.1.mlp.experts",),
        **MIXTURE,
        asked_by=r"'<|assistant|>\n<think></think>\n'",
    ),
    Family(
        "molmo2",
        "Molmo2ForConditionalGeneration",
        _answers(QWEN_END),
        **TOWER,
        tower_norms=NORMS,
        tower_linear=r"self_attn\.[qkvo]_proj$|mlp\.fc[12]$|patch_embedding$",
        slice=("lora_vt_llm",),
        mixed=False,
        unpacked=OWN_MASKS,
    ),
    Family(
        "paligemma",
        "PaliGemmaForConditionalGeneration",
        _answers("<eos>"),
        **TOWER,
        tower_norms=NORMS,
        tower_linear=SIGLIP_LINEAR,
        llm_attention="eager",
        why_refused="more than one question, system turns, samples without pictures: its processor takes one prefix "
        "with pictures and one suffix",
        video=False,
        slice=("lora_vt_llm",),
        prefix=True,
        unpacked="a question is read in both directions, by masks that know of one sample a row",
    ),
]

REFUSED: dict[str, tuple[str, str]] = {}
"""Families of which no model can be trained: name -> (class, the reason, which a test of its own shows)."""


@cache
def processor_of(name: str) -> Any:
    """A family's processor, shared: load another one to change it."""
    return compose(f"model=tiny_{name}").model.load_processor()


def encoder_of(family: Family, max_tokens: int | None = None) -> Encoder:
    return Encoder(family.spec, processor_of(family.name), max_tokens)


def collator_of(family: Family) -> Collator:
    return Collator(family.spec, processor_of(family.name))


FRAMES_FPS = 2.0
"""Of the videos that `video` writes; the tiny models' rule takes as many, so all frames are seen."""


def picture(folder: Path, height: int, width: int, seed: int = 0) -> Image:
    """A picture of noise on disk."""
    return Image(save_noise(folder / f"{height}x{width}-{seed}.png", height, width, seed))


def video(folder: Path, num_frames: int, height: int, width: int) -> Video:
    """A video as a list of frames of noise on disk."""
    paths = [save_noise(folder / f"v{height}x{width}-{i}.png", height, width, seed=i) for i in range(num_frames)]
    return Video(folder, tuple(paths), FRAMES_FPS)


def of_a_text(family: Family, folder: Path) -> tuple[Image, ...]:
    """What stands before a question without pictures: nothing, or a picture where the family takes none without."""
    return (picture(folder, 40, 40, 9),) if family.prefix else ()


def asked(*parts: Part, answer: str = "red") -> Sample:
    """A conversation of one question with its answer."""
    return Sample("mine/1", (Message("user", parts), Message("assistant", (answer,))), "data.json:1")


def official_prefix(
    processor: PaliGemmaProcessor, sample: Sample, suffix: str | None = None
) -> dict[str, torch.Tensor]:
    """What PaliGemma's processor makes of a question, and of an answer as its suffix; no template is between."""
    text = "".join(part if isinstance(part, str) else "<image>" for part in sample.messages[0].parts)
    pictures = [PIL.Image.open(item.path).convert("RGB") for item in sample.images]
    found = dict(processor(text=[text], images=[pictures], suffix=suffix and [suffix], return_tensors="pt"))
    return found if suffix else {name: tensor for name, tensor in found.items() if name != "labels"}


def official(processor: Any, sample: Sample) -> dict[str, torch.Tensor]:
    """What the family's own processor makes of a sample's prompt, by its own path: template, then text with media."""
    if isinstance(processor, PaliGemmaProcessor):
        return official_prefix(processor, sample)
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image" if isinstance(part, Image) else "video"}
        for part in sample.messages[0].parts
    ]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    bos = processor.tokenizer.bos_token
    # As apply_chat_template does it: a template that writes the first token wants no second one.
    options: dict[str, Any] = {"add_special_tokens": False} if bos and text.startswith(bos) else {}
    pictures = [PIL.Image.open(item.path).convert("RGB") for item in sample.images]
    if pictures:
        options["images"] = [pictures]  # all of one conversation
    if videos := [[np.asarray(PIL.Image.open(path)) for path in item.frames] for item in sample.videos]:
        options["videos"] = [torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) for frames in videos]
        options["video_metadata"] = [
            {
                "fps": FRAMES_FPS,
                "total_num_frames": len(frames),
                "frames_indices": list(range(len(frames))),
                "duration": len(frames) / FRAMES_FPS,
            }
            for frames in videos
        ]
        options["do_sample_frames"] = False
    return dict(processor(text=[text], return_tensors="pt", **options))
