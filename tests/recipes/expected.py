"""What trains in the tiny Qwen2.5-VL under each shipped recipe, written by hand: the code under test is not asked."""

from dataclasses import dataclass

BLOCKS = (0, 1)
PEFT = "base_model.model."

TOWER_LINEAR = tuple(
    f"model.visual.blocks.{i}.{layer}"
    for i in BLOCKS
    for layer in ("attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
)
TOWER_NORMS = tuple(f"model.visual.blocks.{i}.{norm}" for i in BLOCKS for norm in ("norm1", "norm2"))
TOWER = (
    "model.visual.patch_embed.proj.weight",
    *(f"{layer}.{kind}" for layer in TOWER_LINEAR for kind in ("weight", "bias")),
    *(f"{norm}.weight" for norm in TOWER_NORMS),
)

PROJECTOR_MODULE = "model.visual.merger"
PROJECTOR_TENSORS = ("ln_q.weight", "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias")
PROJECTOR = tuple(f"{PROJECTOR_MODULE}.{tensor}" for tensor in PROJECTOR_TENSORS)

LLM_LINEAR = tuple(
    f"model.language_model.layers.{i}.{layer}"
    for i in BLOCKS
    for layer in (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    )
)
LLM_NORMS = (
    *(
        f"model.language_model.layers.{i}.{norm}"
        for i in BLOCKS
        for norm in ("input_layernorm", "post_attention_layernorm")
    ),
    "model.language_model.norm",
)
LLM_BIASES = tuple(
    f"model.language_model.layers.{i}.self_attn.{layer}.bias"
    for i in BLOCKS
    for layer in ("q_proj", "k_proj", "v_proj")
)
# The output head is the embedding: lm_head.weight is the same tensor.
LLM = (
    "model.language_model.embed_tokens.weight",
    *(f"{layer}.weight" for layer in LLM_LINEAR),
    *LLM_BIASES,
    *(f"{norm}.weight" for norm in LLM_NORMS),
)

EVERYTHING = (*TOWER, *PROJECTOR, *LLM)


def adapters(layers: tuple[str, ...]) -> tuple[str, ...]:
    """The adapter weights of linear layers, by their live names."""
    return tuple(f"{PEFT}{layer}.lora_{side}.default.weight" for layer in layers for side in "AB")


def copies(module: str, tensors: tuple[str, ...] = ("weight",)) -> tuple[str, ...]:
    """The trained copies of a module that trains in full beside adapters, by their live names."""
    return tuple(f"{PEFT}{module}.modules_to_save.default.{tensor}" for tensor in tensors)


PROJECTOR_COPY = copies(PROJECTOR_MODULE, PROJECTOR_TENSORS)
TOWER_NORM_COPIES = tuple(name for norm in TOWER_NORMS for name in copies(norm))


LLM_ADAPTERS = adapters(LLM_LINEAR)
LLM_MAGNITUDES = tuple(f"{PEFT}{layer}.lora_magnitude_vector.default.weight" for layer in LLM_LINEAR)
TOWER_ATTENTION = tuple(layer for layer in TOWER_LINEAR if ".attn." in layer)
# Where tower and projector both train in full beside adapters, one copy holds both.
TOWER_COPY = copies("model.visual", tuple(name.removeprefix("model.visual.") for name in TOWER))
PROJECTOR_IN_TOWER_COPY = copies("model.visual", tuple(f"merger.{tensor}" for tensor in PROJECTOR_TENSORS))
# The tiny model has two blocks in each: the last two are all of them, without what stands before and behind.
TOWER_BLOCKS = tuple(name for name in TOWER if ".blocks." in name)
LLM_BLOCKS = tuple(name for name in LLM if ".layers." in name)


@dataclass(frozen=True)
class Trains:
    """Live names of what trains, by component."""

    vision_tower: tuple[str, ...]
    projector: tuple[str, ...]
    llm: tuple[str, ...]
    has_adapters: bool
    tower_factor: float | None
    """The tower's learning rate as a factor of the LLM's; None where it does not train."""
    base: str | None = None
    """What the LLM's linear layers are kept in, where they are quantised."""

    @property
    def names(self) -> set[str]:
        return {*self.vision_tower, *self.projector, *self.llm}


SHIPPED = {
    "fft": Trains(TOWER, PROJECTOR, LLM, False, 0.1),
    "projector": Trains((), PROJECTOR, (), False, None),
    "fft_llm": Trains((), PROJECTOR, LLM, False, None),
    "fft_vt": Trains(TOWER, PROJECTOR, (), False, 0.1),
    "ln_vt": Trains(tuple(f"{norm}.weight" for norm in TOWER_NORMS), PROJECTOR, (), False, 0.1),
    "topk": Trains(TOWER_BLOCKS, PROJECTOR, LLM_BLOCKS, False, 0.1),
    "lora_llm": Trains((), PROJECTOR_COPY, LLM_ADAPTERS, True, None),
    "lora_llm_nf4": Trains((), PROJECTOR_COPY, LLM_ADAPTERS, True, None, "nf4"),
    "lora_llm_int8": Trains((), PROJECTOR_COPY, LLM_ADAPTERS, True, None, "int8"),
    "rslora_llm": Trains((), PROJECTOR_COPY, LLM_ADAPTERS, True, None),
    "dora_llm": Trains((), PROJECTOR_COPY, (*LLM_ADAPTERS, *LLM_MAGNITUDES), True, None),
    "lora_vt_llm": Trains(adapters(TOWER_LINEAR), PROJECTOR_COPY, LLM_ADAPTERS, True, 0.1),
    "lora_vt_llm_nf4": Trains(adapters(TOWER_LINEAR), PROJECTOR_COPY, LLM_ADAPTERS, True, 0.1, "nf4"),
    "ln_vt_lora_llm": Trains(TOWER_NORM_COPIES, PROJECTOR_COPY, LLM_ADAPTERS, True, 0.1),
    "ln_vt_lora_llm_nf4": Trains(TOWER_NORM_COPIES, PROJECTOR_COPY, LLM_ADAPTERS, True, 0.1, "nf4"),
    "fft_vt_lora_llm": Trains(TOWER_COPY, PROJECTOR_IN_TOWER_COPY, LLM_ADAPTERS, True, 0.1),
    "fft_vt_lora_llm_nf4": Trains(TOWER_COPY, PROJECTOR_IN_TOWER_COPY, LLM_ADAPTERS, True, 0.1, "nf4"),
    "custom": Trains(adapters(TOWER_ATTENTION), PROJECTOR_COPY, LLM_ADAPTERS, True, 0.1),
}
# Of those that differ in what trains, not in how: enough where a test is about that alone.
DISTINCT = (
    "fft",
    "projector",
    "ln_vt",
    "topk",
    "lora_llm",
    "lora_llm_nf4",
    "dora_llm",
    "ln_vt_lora_llm",
    "fft_vt_lora_llm",
)
WITH_ADAPTERS = [name for name, trains in SHIPPED.items() if trains.has_adapters]


def original_name(live: str) -> str | None:
    """The untouched model's name for a live one; None for an adapter or a trained copy."""
    if ".lora_" in live or ".modules_to_save." in live:
        return None
    return live.removeprefix(PEFT).replace(".base_layer.", ".").replace(".original_module.", ".")
