"""What the tiny checkpoints of all families share: a tokenizer trained on the spot and a chat template.

The weights are random, so a tiny model knows nothing; but its classes, files and code paths are the real ones.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FACTORY_VERSION = 3
"""Part of the cache folder's name: raise it with any change to what the factories write."""

INITIALIZER_RANGE = 0.1
"""About 1/sqrt(64), the tiny widths' fan-in: with the 0.02 that suits wide models, signals die out and nothing is
learned in the first minute."""

QWEN_SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Renders the same strings as Qwen2.5-VL's own template for text, images and videos (tested against golden strings).
CHATML_TEMPLATE = """\
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}
            {%- if part.type == 'image' or 'image' in part or 'image_url' in part %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif part.type == 'video' or 'video' in part %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif 'text' in part %}
                {{- part.text }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

# The words of the generated tasks, so that an answer is a token or two; any other text falls back to bytes.
_CORPUS = """\
system user assistant You are a helpful assistant.
What colour is the shape? Which colour does the shape have? Name the colour of the shape in the picture.
What colour is the background? Name the colour of the background. Answer with one word.
What colour is the shape in the first picture? What colour is the shape in the second picture?
red green blue yellow purple orange black white pink brown grey
circle square triangle cross star ring
Which digit is written here? Answer with the digit. zero one two three four five six seven eight nine
0 1 2 3 4 5 6 7 8 9 yes no left right top bottom
The quick brown fox jumps over the lazy dog; describe the image, the video and what happens in it.
"""


def train_qwen_tokenizer(special_tokens: Sequence[str], tokenizer_class: Any = None, **settings: Any) -> Any:
    """A byte-level BPE in Qwen2's tokenizer class; any text encodes and decodes without loss.

    Args:
        tokenizer_class: another of the same making.
        settings: of the tokenizer class, such as `extra_special_tokens` with their names.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=768, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    # Each word also by itself, as an answer begins: without a space before it.
    bpe.train_from_iterator([*_CORPUS.splitlines(keepends=True), *_CORPUS.split()] * 4, trainer)
    trained = json.loads(bpe.to_str())["model"]
    tokenizer = (tokenizer_class or Qwen2Tokenizer)(
        vocab=trained["vocab"],
        merges=[tuple(pair) for pair in trained["merges"]],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=2048,
        **settings,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(special_tokens)})
    return tokenizer


def train_gpt2_tokenizer(special_tokens: Sequence[str], **settings: Any) -> Any:
    """A byte-level BPE in GPT-2's tokenizer class."""
    from transformers import GPT2Tokenizer

    trained = json.loads(train_qwen_tokenizer(()).backend_tokenizer.to_str())["model"]
    tokenizer = GPT2Tokenizer(
        vocab=trained["vocab"],
        merges=[tuple(pair) for pair in trained["merges"]],
        unk_token="<|endoftext|>",
        model_max_length=2048,
        **settings,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(special_tokens)})
    return tokenizer


def train_bytes_tokenizer(special_tokens: Sequence[str], bos_token: str | None, **settings: Any) -> Any:
    """A byte-level BPE in no family's own class, as Llama 3's, Mistral's and GLM's; any `bos_token` it puts first."""
    from tokenizers import Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast

    backend = train_qwen_tokenizer(()).backend_tokenizer
    trained = json.loads(backend.to_str())["model"]
    bpe = Tokenizer(models.BPE(trained["vocab"], [tuple(pair) for pair in trained["merges"]]))
    bpe.pre_tokenizer, bpe.decoder = backend.pre_tokenizer, backend.decoder
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=bos_token, model_max_length=2048, **settings)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special_tokens)})
    if bos_token is not None:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos_token} $A", special_tokens=[(bos_token, tokenizer.bos_token_id)]
        )
    return tokenizer


def train_llama_tokenizer(special_tokens: Sequence[str], **settings: Any) -> Any:
    """A BPE over pieces with `▁` for a space, and bytes for what it does not know, in Llama's tokenizer class."""
    from transformers import LlamaTokenizer

    return _sentence_pieces(LlamaTokenizer, ("<unk>", "<s>", "</s>"), special_tokens, pad_token="<pad>", **settings)


def train_gemma_tokenizer(special_tokens: Sequence[str], **settings: Any) -> Any:
    """As `train_llama_tokenizer`, in Gemma's tokenizer class."""
    from transformers import GemmaTokenizer

    own = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    return _sentence_pieces(GemmaTokenizer, own, special_tokens, **settings)


def _sentence_pieces(tokenizer_class: Any, own: Sequence[str], special_tokens: Sequence[str], **settings: Any) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    known = [*own, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=896, special_tokens=known, show_progress=False)
    bpe.train_from_iterator([*_CORPUS.splitlines(keepends=True), *_CORPUS.split()] * 4, trainer)
    trained = json.loads(bpe.to_str())["model"]
    tokenizer = tokenizer_class(
        vocab=trained["vocab"],
        merges=[tuple(pair) for pair in trained["merges"]],
        model_max_length=2048,
        **settings,
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(special_tokens)})
    return tokenizer


def llama_llm(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    """The text config of a tiny Llama: 2 layers of width 64, 4 heads."""
    config = {
        "vocab_size": len(tokenizer),
        "initializer_range": INITIALIZER_RANGE,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return config | changes


def siglip_tower() -> Any:
    """The vision config of a SigLIP of 2 layers of width 64, 4 heads: 16 patches of a picture of 56 x 56 pixels."""
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=56,
        patch_size=14,
        vision_use_head=False,
    )


def qwen_llm(tokenizer: Any, **changes: Any) -> dict[str, Any]:
    """The text config of a tiny Qwen: 2 layers of width 64, 4 heads."""
    token = tokenizer.convert_tokens_to_ids
    config = {
        "vocab_size": len(tokenizer),
        "initializer_range": INITIALIZER_RANGE,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
        "tie_word_embeddings": True,
    }
    return config | changes


def qwen_vision_tokens(tokenizer: Any) -> dict[str, int]:
    """The ids that every Qwen-VL config names."""
    names = (
        ("image", "image_pad"),
        ("video", "video_pad"),
        ("vision_start", "vision_start"),
        ("vision_end", "vision_end"),
    )
    return {f"{key}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for key, token in names}


def write_checkpoint(
    folder: Path,
    model_class: Any,
    config: Any,
    processor: Any,
    eos: Sequence[str],
    pad: str,
    randomise: Sequence[str] = (),
    **settings: Any,
) -> None:
    """Save a model of `config` with random weights (the same each time), its processor and generation config.

    Args:
        eos: the tokens that end an answer.
        randomise: weights that the class begins with zeros, behind which nothing of a picture would be seen.
        settings: more of the generation config.
    """
    import torch

    token = processor.tokenizer.convert_tokens_to_ids
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
        for name in randomise:
            model.get_parameter(name).data.normal_(std=INITIALIZER_RANGE)
    model.generation_config.update(eos_token_id=[token(name) for name in eos], pad_token_id=token(pad), **settings)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
