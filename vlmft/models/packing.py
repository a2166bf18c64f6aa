"""Attention over samples that stand end to end in one row: each sees itself alone, and no S x S mask is built.

A pack's borders travel as its attention mask. transformers (5.23, `masking_utils._preprocess_mask_arguments`) hands a
4-D mask as it is to every layer of the LLM, so they need no way of their own through a family's forward, and the vision
tower, whose segments are others, never meets them. To any other attention function they are a mask of a wrong size:
it fails where it would have leaked. S = tokens of the pack, N = samples, L = tokens of the longest.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlmft.errors import ConfigError
from vlmft.models.kernels import attention_modules
from vlmft.models.varlen import as_autocast, varlen, varlen_usable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

PACKED = "vlmft_packed"
"""Under what name transformers knows the attention function. A batch with another mask is computed as by `sdpa`."""

PACKED_LLMS = frozenset(
    {
        "llama",
        "mistral",
        "qwen2",
        "qwen3",
        "qwen2_vl_text",
        "qwen2_5_vl_text",
        "qwen3_vl_text",
        "qwen3_vl_moe_text",
        "glm4v_text",
        "glm4v_moe_text",
    }
)
"""LLMs (`model_type`) of which every layer mixes tokens by this attention alone, causal or in a sliding window."""


def borders(lengths: Sequence[int], device: "torch.device") -> "Tensor":
    """The attention mask of a pack, int32 [1, 1, L, N + 1]: where each sample begins, and where the last one ends.

    L is told by the shape alone (the rows are one), so that no kernel has to ask the device for it.
    """
    import torch

    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return ends.to(device).expand(1, 1, max(lengths), -1)


def use_packed_attention(model: Any) -> None:
    """Let the LLM of a loaded model, wrapped or not, compute packs with `packed_attention`.

    Raises:
        ConfigError: it is none of `PACKED_LLMS`, or has a layer that does not ask transformers for its attention.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    llm = (model.get_base_model() if hasattr(model, "get_base_model") else model).get_decoder()
    kind = llm.config.model_type
    foreign = [name for name, implementation in attention_modules(llm) if implementation not in ("sdpa", PACKED)]
    if kind not in PACKED_LLMS or foreign:
        what = f"{foreign[0]} computes attention by other means than sdpa" if foreign else "nobody has looked at that"
        raise ConfigError(
            f"batching=packed: this checkpoint's LLM is of type {kind}, and {what}; take batching=grouped"
        )
    ALL_ATTENTION_FUNCTIONS.register(PACKED, packed_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(PACKED, sdpa_mask)
    for module in llm.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = PACKED


def packed_attention(
    module: "nn.Module",
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    attention_mask: "Tensor | None",
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple["Tensor", None]:
    """As transformers' attention functions: query [B, heads, S, D], key, value [B, KV heads, S, D] -> [B, S, heads, D].

    Args:
        attention_mask: what `borders` gives; or any that `sdpa` takes, and then this is `sdpa`.
    """
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is None or attention_mask.dtype != torch.int32:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            sliding_window=sliding_window,
            **others,
        )
    if asked := [name for name in ("s_aux", "softcap", "position_bias") if others.get(name) is not None]:
        raise ConfigError(f"batching=packed: the LLM's attention asks for {asked[0]}; take batching=grouped")
    longest, ends = attention_mask.shape[2], attention_mask[0, 0, 0]
    query, key, value = as_autocast(query, key, value)
    if varlen_usable(query, dropout):
        return _one_call(query, key, value, ends, longest, scaling, sliding_window), None
    found = []
    for part in zip(*(tensor.split(ends.diff().tolist(), dim=2) for tensor in (query, key, value)), strict=True):
        window = _window(part[0], sliding_window)
        alone, _ = sdpa_attention_forward(
            module, *part, window, dropout=dropout, scaling=scaling, is_causal=window is None
        )
        found.append(alone)
    return torch.cat(found, dim=1), None


def _window(query: "Tensor", size: int | None) -> "Tensor | None":
    """The mask of one sample in a sliding window of `size` tokens; None where it fits into one."""
    import torch

    length = query.shape[2]
    if size is None or length <= size:
        return None
    return torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - size)[None, None]


def _one_call(
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    ends: "Tensor",
    longest: int,
    scaling: float | None,
    sliding_window: int | None,
) -> "Tensor":
    """All samples of a pack in one kernel. `ends` is int32 [N + 1]."""
    function, takes = varlen()
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [S, heads, D]
    options: dict[str, Any] = {"window_size": (-1 if sliding_window is None else sliding_window - 1, 0)}
    if scaling is not None:
        options["scale"] = scaling
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in takes:
            options["enable_gqa"] = True
        else:
            groups = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    found: Tensor = function(query, key, value, ends, ends, longest, longest, **options)
    return found[None]
