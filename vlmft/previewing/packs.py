"""`check=packing` of the preview: the samples that the page shows, in packs, against each of them alone."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlmft.encoding.encoder import Encoded, Encoder, as_conversation
from vlmft.errors import ConfigError, VlmftError
from vlmft.previewing.visits import Visit
from vlmft.types import Sample

if TYPE_CHECKING:
    from rich.table import Table

    from vlmft.preview import PreviewConfig
    from vlmft.training.pack_check import CheckedPack

LISTED = 20  # samples on the screen: those that differ most


def show(config: "PreviewConfig", visits: Sequence[Visit], encoder: Encoder) -> None:
    """Compare, and print the table. Raises `ConfigError` as `prove_packing`, and where a pack is not exact."""
    from vlmft.screen import console

    found = prove_packing(config, visits, encoder)
    console().print(table(found, config))
    refuse_failed(config, found)


def prove_packing(config: "PreviewConfig", visits: Sequence[Visit], encoder: Encoder) -> "list[CheckedPack]":
    """Load the model as it trains, and compare. Samples that learn otherwise are taken as conversations.

    Raises:
        ConfigError: fewer than two samples can be encoded and have an answer, or the checkpoint's LLM takes no packs.
    """
    import torch

    from vlmft.assembly import seed_everything
    from vlmft.encoding.collate import Collator
    from vlmft.recipes.loading import load_to_train
    from vlmft.screen import console
    from vlmft.training.pack_check import check_packs
    from vlmft.training.progress import counting

    samples = _encoded(visits, encoder)
    if len(samples) < 2:
        raise ConfigError(f"check=packing: {len(samples)} of these samples can be packed, and it takes two; raise n")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    seed_everything(config.seed)
    model, _ = load_to_train(config.model, config.recipe, config.precision, device, packs=True)
    collator = Collator(config.model, encoder.processor, packs=True)
    with counting("packs", console()) as progress:
        return check_packs(model, collator, samples, config.batching.max_tokens, config.precision, progress)


def refuse_failed(config: "PreviewConfig", packs: "Sequence[CheckedPack]") -> None:
    """Raise `ConfigError` where a pack is not exact."""
    from vlmft.training.pack_check import BOUNDS

    bound = BOUNDS[config.precision]
    failed = [number for number, pack in enumerate(packs, start=1) if not pack.worst <= bound]
    if failed:
        raise ConfigError(
            f"check=packing: packs {', '.join(map(str, failed))} of {len(packs)} are not computed as their samples "
            f"alone, within {bound:.0e}; take batching=grouped, and report this with the model's name"
        )


def table(packs: "Sequence[CheckedPack]", config: "PreviewConfig") -> "Table":
    """Every pack, and the samples that differ most."""
    from rich.table import Table

    from vlmft.training.pack_check import BOUNDS

    found = Table(title="samples in a pack against themselves alone", title_justify="left", caption_justify="left")
    found.add_column("")
    for column in ("tokens", "logits", "loss", "gradient", "recomputed"):
        found.add_column(column, justify="right")
    rows = [(one, number) for number, pack in enumerate(packs, start=1) for one in pack.samples]
    for one, number in sorted(rows, key=lambda row: -max(row[0].logits, row[0].loss))[:LISTED]:
        found.add_row(f"{one.id}, pack {number}", str(one.tokens), f"{one.logits:.1e}", f"{one.loss:.1e}", "", "")
    if len(rows) > LISTED:
        found.add_row(f"and {len(rows) - LISTED} that differ less", *[""] * 5)
    for number, pack in enumerate(packs, start=1):
        tokens = str(sum(one.tokens for one in pack.samples))
        worst = (max(one.logits for one in pack.samples), max(one.loss for one in pack.samples))
        found.add_row(
            f"pack {number}, {len(pack.samples)} samples",
            tokens,
            *(f"{value:.1e}" for value in (*worst, pack.gradient, pack.recomputed)),
        )
    found.caption = (
        f"differences as shares of the sample's own; {config.precision}, at most {BOUNDS[config.precision]:.0e} is "
        "allowed\ngradient: of what the recipe trains, against the sum over the samples alone; recomputed: with "
        "gradient checkpointing"
    )
    return found


def _encoded(visits: Sequence[Visit], encoder: Encoder) -> list[Encoded]:
    """The samples that can be encoded and have an answer."""
    from vlmft.encoding.loading import Watch, encode_group

    def encode(visit: Visit) -> Encoded:
        assert isinstance(visit.found, Sample)
        return encoder.encode(as_conversation(visit.found), visit.key)

    readable = [visit for visit in visits if isinstance(visit.found, Sample)]
    group = encode_group(encoder, 0, readable, encode, lambda visit: visit.id, Watch())
    if isinstance(group, VlmftError):
        raise group
    return [sample for sample in group.samples if sample.num_supervised]
