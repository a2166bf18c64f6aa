"""The vision tower of the Qwen-VL kind, computed in few calls: its attention over segments, and its patch embedding.

Such a tower takes the patches of all pictures of a micro-batch end to end, and attends within segments: a frame, or a
window of one. Under `sdpa` transformers calls the kernel once a segment and layer. And it embeds patches by a
convolution that covers each whole patch, which is a matrix product. S = patches of all pictures, N = segments.
"""

import inspect
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vlmft.models.varlen import as_autocast, varlen, varlen_usable

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SEGMENTS = "vlmft_flash_segments"
"""Under what name transformers knows the attention function: one with `flash` in it is given all segments at once."""


def use_fast_tower(model: Any) -> None:
    """Let the vision tower of a loaded model, where it is of this kind and loaded with `sdpa`, compute in few calls."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for module in list(_segmented(model)):
        ALL_ATTENTION_FUNCTIONS.register(SEGMENTS, segment_attention)
        module.config._attn_implementation = SEGMENTS
    for module in model.modules():
        if _covers_its_input(module):
            module.__class__ = _whole_patch_class()


def tower_inputs(model: Any, grids: "Mapping[str, Tensor]", device: "torch.device") -> dict[str, Any]:
    """What the tower of a model of this kind would work out of `grids` on the device, waiting for it time and again.

    The values are by the functions that the tower itself would call (transformers 5.23, `vision_utils`), which are not
    asked where their names come as arguments: `image_cu_seqlens`, `image_window_index`, ...

    Args:
        grids: int64 [pictures, 3] of `image`, `video` or both, on the CPU.
    """
    from transformers import vision_utils as of
    from transformers.utils.generic import get_max_seqlen

    tower = next(module for module in model.modules() if "get_vision_position_ids" in _names(type(module)))
    names = _names(type(tower))
    found: dict[str, Any] = {}
    for kind, grid in grids.items():
        values: dict[str, Any] = {"position_ids": of.get_vision_position_ids(grid, tower.spatial_merge_size)}
        values["cu_seqlens"], values["max_seqlen"] = of.get_vision_attention_seqlens(grid, tower.config)
        if "get_vision_window_index" in names:
            sizes = (tower.spatial_merge_size, tower.window_size, tower.patch_size)
            values["window_index"], values["cu_window_seqlens"] = of.get_vision_window_index(grid, *sizes)
            values["max_window_seqlen"] = get_max_seqlen(values["cu_window_seqlens"], tower.config)
        if "get_vision_interpolation_indices_and_weights" in names:
            rule = (tower.interpolation_mode, tower.interpolation_align_corners, tower.config.spatial_merge_size)
            indices, weights = of.get_vision_interpolation_indices_and_weights(grid, tower.num_grid_per_side, *rule)
            values |= {"interp_indices": indices, "interp_weights": weights}
        found |= {f"{kind}_{name}": value for name, value in values.items() if value is not None}
    return {
        name: value if isinstance(value, int) else value.to(device, non_blocking=True) for name, value in found.items()
    }


def _names(kind: Any) -> tuple[str, ...]:
    """What the code of a module's forward reads by name."""
    return getattr(getattr(inspect.unwrap(kind.forward), "__code__", None), "co_names", ())


def _segmented(model: Any) -> Iterator[Any]:
    """Attention modules that hand over all segments at once where the function's name has `flash` in it."""
    for module in model.modules():
        asks = "is_flash_attention_requested" in _names(type(module))
        takes_segments = asks and "cu_seqlens" in inspect.signature(type(module).forward).parameters
        if takes_segments and module.config._attn_implementation == "sdpa":
            yield module


def segment_attention(
    module: "nn.Module",
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    attention_mask: "Tensor | None",
    *,
    cu_seq_lens_q: "Tensor",
    max_length_q: int,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple["Tensor", None]:
    """As transformers' attention functions: query, key, value [1, heads, S, D] -> [1, S, heads, D].

    Where `varlen_usable` it is one kernel; else one call for all segments of the same length.

    Args:
        cu_seq_lens_q: int32 [N + 1], where each segment begins, and where the last one ends.
        max_length_q: patches of the longest.
    """
    import torch
    import torch.nn.functional as F  # noqa: N812 (torch's own convention)

    query, key, value = as_autocast(query, key, value)
    rows = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # [S, heads, D]
    if varlen_usable(query, dropout):
        return _one_call(rows, cu_seq_lens_q, max_length_q, scaling)[None], None
    counts, order, back = _by_length(tuple(cu_seq_lens_q.diff().tolist()), query.device)
    if order is not None:
        rows = [tensor[order] for tensor in rows]
    found = []
    for (length, count), part in zip(
        counts, zip(*(tensor.split([n * m for n, m in counts]) for tensor in rows), strict=True), strict=True
    ):
        q, k, v = (tensor.unflatten(0, (count, length)).transpose(1, 2) for tensor in part)  # [count, heads, length, D]
        alone = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling)
        found.append(alone.transpose(1, 2).flatten(0, 1))
    joined = torch.cat(found)
    return (joined if back is None else joined[back])[None], None


def _one_call(rows: "list[Tensor]", ends: "Tensor", longest: int, scaling: float | None) -> "Tensor":
    """All segments in one kernel. `rows` are query, key and value [S, heads, D]; `ends` is int32 [N + 1]."""
    function, _ = varlen()
    options = {} if scaling is None else {"scale": scaling}
    found: Tensor = function(*rows, ends, ends, longest, longest, **options)
    return found


@lru_cache(maxsize=8)  # each layer of a tower asks for the same one or two
def _by_length(
    lengths: tuple[int, ...], device: "torch.device"
) -> "tuple[list[tuple[int, int]], Tensor | None, Tensor | None]":
    """Segments by length: (length, how many) of each, the patches in that order, and the way back; None: as is."""
    import torch

    counts = [(length, lengths.count(length)) for length in sorted(set(lengths))]
    if list(lengths) == sorted(lengths):
        return counts, None, None
    sizes = torch.tensor(lengths)
    order = torch.repeat_interleave(sizes, sizes).argsort(stable=True)
    return counts, order.to(device), order.argsort().to(device)


def _covers_its_input(module: "nn.Module") -> bool:
    from torch import nn

    return (
        type(module) is nn.Conv3d
        and module.stride == module.kernel_size
        and not any(module.padding)
        and module.groups == 1
        and set(module.dilation) == {1}
    )


@lru_cache(maxsize=1)
def _whole_patch_class() -> type:
    import torch.nn.functional as F  # noqa: N812 (torch's own convention)
    from torch import nn

    class WholePatch(nn.Conv3d):
        """A convolution whose input is no larger than its kernel, as a matrix product: 10 times as fast on a CPU."""

        def forward(self, input: "Tensor") -> "Tensor":
            if input.shape[2:] != self.kernel_size:
                return super().forward(input)
            found = F.linear(input.flatten(1), self.weight.flatten(1), self.bias)
            return found[:, :, None, None, None]

    return WholePatch
