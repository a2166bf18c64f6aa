"""What a scan's counts come to: for each entry its mix, tokens and repetitions, and whether a run would start."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmft.checking.counts import BAD, COUNTED, READ, TOO_LONG, TOO_MUCH_VISION, Table, Target, target_of

if TYPE_CHECKING:
    from vlmft.validate import ValidateConfig

SHOWN_PAIRS = 5
MIX = ("text", "image", "images", "video", "mixed")
"""What a sample shows: nothing, one picture, several, videos, or both kinds."""


@dataclass(frozen=True)
class TokenFigures:
    """Tokens of an entry's samples, before any limit; quantiles are values that occur."""

    samples: int
    total: int
    least: int
    median: int
    p95: int
    most: int
    histogram: Mapping[int, int]
    """Upper bound (a power of two) -> samples above half of it."""
    most_vision: int
    vision_share: float
    supervised_share: float
    too_long: int
    """Samples of more tokens than `batching.max_tokens`."""
    too_much_vision: int
    """Samples of more vision tokens than `max_vision_tokens`."""


@dataclass(frozen=True)
class EntryFigures:
    """One entry, or all that is trained on."""

    name: str
    held_out: bool
    samples: int
    share: float | None
    """Of the training stream."""
    mix: Mapping[str, int]
    bad: int
    repeated: int
    """Samples that ask what an earlier one asks, of the same media."""
    tokens: TokenFigures | None


@dataclass(frozen=True)
class Figures:
    """All entries; `total` is what is trained on."""

    trained: Sequence[EntryFigures]
    held_out: Sequence[EntryFigures]
    total: EntryFigures
    repeated_pairs: Sequence[tuple[str, str]]
    """The first of them: (a sample, the one before that asks the same)."""


def figures_of(table: Table, targets: Sequence[Target], shares: Sequence[float]) -> Figures:
    """Add up a scan's counts; `shares` are those of the training targets."""
    end = max((target.stop for target in targets if not target.held_out), default=0)
    repeats, earlier = _repeats(table[:end])
    is_repeat = np.zeros(len(table), dtype=bool)
    is_repeat[repeats] = True

    def entry(target: Target, share: float | None) -> EntryFigures:
        part = slice(target.start, target.stop)
        return _entry(target.source.name, target.held_out, share, table[part], is_repeat[part])

    trained = [target for target in targets if not target.held_out]
    return Figures(
        trained=[entry(target, share) for target, share in zip(trained, shares, strict=True)],
        held_out=[entry(target, None) for target in targets if target.held_out],
        total=_entry("all", False, 1.0, table[:end], is_repeat[:end]),
        repeated_pairs=[
            (target_of(targets, a).sample_id(a), target_of(targets, b).sample_id(b))
            for a, b in zip(repeats[:SHOWN_PAIRS].tolist(), earlier[:SHOWN_PAIRS].tolist(), strict=True)
        ],
    )


def _repeats(table: Table) -> tuple[Table, Table]:
    """Numbers of the samples whose question an earlier one has, and of the first that has it; both in order."""
    read = np.flatnonzero(table["state"] & READ)
    _, first, group = np.unique(table["question"][read], return_index=True, return_inverse=True)
    earlier = first[group]
    is_repeat = earlier != np.arange(len(read))
    return read[is_repeat], read[earlier[is_repeat]]


def _entry(name: str, held_out: bool, share: float | None, table: Table, is_repeat: Table) -> EntryFigures:
    state, pictures, videos = table["state"], table["pictures"], table["videos"]
    read = (state & READ) > 0
    mix = {
        "text": (pictures == 0) & (videos == 0),
        "image": (pictures == 1) & (videos == 0),
        "images": (pictures > 1) & (videos == 0),
        "video": (pictures == 0) & (videos > 0),
        "mixed": (pictures > 0) & (videos > 0),
    }
    return EntryFigures(
        name=name,
        held_out=held_out,
        samples=len(table),
        share=share,
        mix={kind: int((chosen & read).sum()) for kind, chosen in mix.items()},
        bad=int(((state & BAD) > 0).sum()),
        repeated=int(is_repeat.sum()),
        tokens=_tokens(table[(state & COUNTED) > 0]),
    )


def _tokens(counted: Table) -> TokenFigures | None:
    if not len(counted):
        return None
    tokens = counted["tokens"].astype(np.int64)
    total = int(tokens.sum())
    median, p95 = np.quantile(tokens, [0.5, 0.95], method="inverted_cdf")
    bounds, samples = np.unique(np.ceil(np.log2(np.maximum(tokens, 1))).astype(np.int64), return_counts=True)
    return TokenFigures(
        samples=len(counted),
        total=total,
        least=int(tokens.min()),
        median=int(median),
        p95=int(p95),
        most=int(tokens.max()),
        histogram={2 ** int(bound): int(count) for bound, count in zip(bounds, samples, strict=True)},
        most_vision=int(counted["vision_tokens"].max()),
        vision_share=float(counted["vision_tokens"].sum(dtype=np.int64)) / total,
        supervised_share=float(counted["supervised_tokens"].sum(dtype=np.int64)) / total,
        too_long=int(((counted["state"] & TOO_LONG) > 0).sum()),
        too_much_vision=int(((counted["state"] & TOO_MUCH_VISION) > 0).sum()),
    )


def limits_of(config: "ValidateConfig", figures: Figures) -> dict[str, dict[str, int | None]]:
    """Each limit on tokens by its key: what it `is`, the samples `over` it, and the least that `fits_all`."""
    counted = [(entry.name, entry.tokens) for entry in [*figures.trained, *figures.held_out] if entry.tokens]
    if not counted:
        return {}
    limits: dict[str, dict[str, int | None]] = {
        "batching.max_tokens": {
            "is": config.batching.max_tokens,
            "over": sum(tokens.too_long for _, tokens in counted),
            "fits_all": max(tokens.most for _, tokens in counted),
        }
    }
    for name, tokens in counted:
        key, most = "model.max_vision_tokens", config.model.max_vision_tokens
        for group in ("dataset", "eval_dataset"):
            entry = getattr(config, group).get(name)
            if entry is not None and entry.max_vision_tokens is not None:
                key, most = f"{group}.{name}.max_vision_tokens", entry.max_vision_tokens
        if most is not None:
            limit = limits.setdefault(key, {"is": most, "over": 0, "fits_all": 0})
            limit["over"] = (limit["over"] or 0) + tokens.too_much_vision
            limit["fits_all"] = max(limit["fits_all"] or 0, tokens.most_vision)
    return limits


def plain(value: Any) -> Any:
    """Figures as JSON holds them."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return round(value, 6) if isinstance(value, float) else value
