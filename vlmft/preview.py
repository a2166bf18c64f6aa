"""Show what the model will see: `python -m vlmft.preview dataset=A+B model=... n=20` writes one HTML file.

Samples come in the order of a training run with the same seed, augmented and tokenised as that run does it. Up to the
checked config nothing heavy is imported, so a typo is answered at once.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

from pydantic import BeforeValidator, Field, field_validator

from vlmft.config.app import Composition, run_app
from vlmft.config.spec import Spec
from vlmft.data import DatasetSpec
from vlmft.encoding import BatchingSpec
from vlmft.errors import ConfigError
from vlmft.models import ModelSpec, Precision
from vlmft.recipes import Recipe

if TYPE_CHECKING:
    from rich.table import Table

    from vlmft.data.run_data import RunData
    from vlmft.previewing.samples import ShownSample
    from vlmft.previewing.visits import Visit

MOST = 500  # samples of a page: a browser has to lay out each token
LISTED = 20  # samples of the table on the screen


def _ids(value: object) -> object:
    """A single id is a list of one, and a number the text that it was typed as."""
    ids = value if isinstance(value, list | tuple) else [value]
    return [str(item) if type(item) is int else item for item in ids]


class PreviewConfig(Spec):
    """What to show, and where to; conf/preview.yaml holds the values."""

    n: int = Field(description="samples to show")
    start: int = Field(ge=0, description="samples that are passed over before")
    ids: Annotated[tuple[str, ...], BeforeValidator(_ids)] = Field(
        description="ids of the samples to show, in place of n and start"
    )
    eval: bool = Field(description="held-out samples, as prompts")
    check: Literal["none", "packing"] = Field(description="packing: compare samples in packs with themselves alone")
    precision: Precision = Field(description="what check=packing computes in")
    out: Path = Field(description="the page to write")
    seed: int = Field(ge=0, lt=2**32, description="of the run's order and augmentation")
    holdout: float = Field(ge=0, lt=1, description="share of each training entry that is held out")
    mixing_temperature: float | None = Field(gt=0, description="evens out the entries' shares of the stream")
    sample_timeout_s: float = Field(gt=0, description="seconds to read and decode one sample in")
    dataset: dict[str, DatasetSpec] = Field(min_length=1)
    eval_dataset: dict[str, DatasetSpec]
    model: ModelSpec
    batching: BatchingSpec
    recipe: Recipe

    @field_validator("n")
    @classmethod
    def _a_page_full(cls, n: int) -> int:
        if not 1 <= n <= MOST:
            found = "there would be nothing to see" if n < 1 else "no browser shows a page of so many well"
            raise ValueError(f"{found}; give 1 to {MOST}, and start= to see others")
        return n


def main() -> NoReturn:
    """The command."""
    sys.exit(run_app("preview", PreviewConfig, preview))


def preview(config: PreviewConfig, composition: Composition) -> int:
    """Write the page; return the exit code."""
    from vlmft.previewing import MAKER
    from vlmft.webpage import refuse_other_files, write_page

    out = config.out.expanduser().absolute()
    refuse_other_files(out, MAKER, "out")
    config.model.refuse_missing_folder()
    if config.check == "packing":
        refuse_check(config)

    from vlmft import assembly
    from vlmft.data.run_data import open_run_data
    from vlmft.encoding.time_limit import TimeLimit
    from vlmft.previewing import packs
    from vlmft.previewing.album import Album
    from vlmft.previewing.page import head_of, render
    from vlmft.previewing.samples import AnyKind, show
    from vlmft.screen import console

    data = open_run_data(config.dataset, config.eval_dataset, config.holdout, config.seed, config.mixing_temperature)
    subject, visits = chosen(config, data)
    assembly.quiet_libraries()
    limit = TimeLimit(config.sample_timeout_s)
    encoder = AnyKind(config.model, config.model.load_processor(), config.batching.max_tokens, limit)
    album = Album()
    samples = show(visits, encoder, album, num_workers=1)  # not here: a decoder that crashes takes its process along
    head = head_of(config, data, subject, composition.choices.get("dataset", ""))
    write_page(out, render(head, samples, album))
    console().print(table(samples))
    console().print(f"preview  {out}")
    if config.check == "packing":
        packs.show(config, visits, encoder)
    return 0


def refuse_check(config: PreviewConfig) -> None:
    """Raise `ConfigError` where there are no packs to be checked."""
    from vlmft.settling import unknown_llm

    if config.eval:
        raise ConfigError("check=packing: packs are for training; leave eval=true out")
    config.model.refuse_packing()
    if reason := unknown_llm(config.model):
        raise ConfigError(f"check=packing: {type(config.model).__name__} takes no packs: {reason}")


def chosen(config: PreviewConfig, data: "RunData") -> "tuple[str, list[Visit]]":
    """What is to be shown, in words, and the visits. Raises `ConfigError` where there is no such sample."""
    from vlmft.previewing.visits import by_id, first

    if config.ids:
        visits = by_id(data, config.ids, config.eval)
        where = "held out, as prompts" if config.eval else "each as a training run meets it first"
        return f"samples picked by id, {where}", visits
    visits = first(data, config.n, config.start, config.eval)
    numbers = f"{config.start + 1} to {config.start + len(visits)}"
    if config.eval:
        return f"samples {numbers} of {data.num_held_out} that are held out, as prompts", visits
    return f"samples {numbers} of the training stream", visits


def table(samples: "list[ShownSample]") -> "Table":
    """The first samples' figures, and those of all."""
    from rich.table import Table

    bad = sum(bool(sample.error) for sample in samples)
    found = Table(title="what the model sees", title_justify="left", caption_justify="left")
    found.add_column("sample")
    for column in ("pictures and videos", "tokens", "vision", "trained"):
        found.add_column(column, justify="right")
    for sample in samples[:LISTED]:
        figures = (len(sample.media), sample.num_tokens, sample.num_vision, sample.num_supervised)
        found.add_row(sample.visit.id, *(["cannot be encoded"] if sample.error else map(str, figures)))
    if len(samples) > LISTED:
        found.add_row(f"and {len(samples) - LISTED} more")
    sums = ("num_tokens", "num_vision", "num_supervised")
    media = sum(len(sample.media) for sample in samples)
    found.add_row("all", str(media), *(f"{sum(getattr(s, name) for s in samples):,}" for name in sums))
    if bad:
        found.caption = f"{bad} of {len(samples)} cannot be encoded; the page says why"
    return found


if __name__ == "__main__":
    main()
