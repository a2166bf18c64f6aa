"""The page: a head that says what was chosen, then the samples. Its text is a template, `page.html`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.data.run_data import RunData
from vlmft.previewing import MAKER
from vlmft.previewing.album import Album
from vlmft.previewing.samples import ShownSample, flat_rules
from vlmft.previewing.tokens import printable
from vlmft.webpage import document

if TYPE_CHECKING:
    from vlmft.preview import PreviewConfig
    from vlmft.train import TrainConfig


@dataclass(frozen=True)
class Head:
    """What the page says before the samples."""

    title: str
    subject: str
    """Which samples these are."""
    facts: tuple[tuple[str, str], ...]


def head_of(config: "PreviewConfig | TrainConfig", data: RunData, subject: str, expression: str = "") -> Head:
    """The head of a page about a run's choices; `expression` is what `dataset=` was, where that is known."""
    entries = [f"{name} x {spec.visits:g}" if spec.visits != 1 else name for name, spec in config.dataset.items()]
    shares = [f"{entry}: {100 * share:.3g} %" for entry, share in zip(entries, data.mixture.shares, strict=True)]
    rules = dict(flat_rules(config.model.media_rules))
    said = {kind: [f"{k}={v}" for k, v in rules.items() if k.startswith(kind)] for kind in ("image", "video")}
    facts = {
        "dataset": expression or " + ".join(entries),
        "shares of the stream": ", ".join(shares),
        "samples": f"{len(data.mixture)} in a pass, {data.num_held_out} held out",
        "model": f"{type(config.model).__name__}, {config.model.path or config.model.folder()}",
        "pictures (model.image)": ", ".join(said["image"]) or "as the checkpoint says",
        "videos (model.video)": ", ".join(said["video"]) or "as the checkpoint says",
        "longest sample": f"{config.batching.max_tokens} tokens (batching.max_tokens)",
        "seed": str(config.seed),
    }
    return Head("What the model sees", subject, tuple(facts.items()))


def render(head: Head, samples: Sequence[ShownSample], album: Album) -> str:
    """The page as a text. Whatever comes from data, also from file names, is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, finalize=_visible
    )
    body = environment.get_template("page.html").render(head=head, samples=samples, album=album)
    return document(head.title, (folder / "page.css").read_text(encoding="utf-8"), body, MAKER)


def _visible(value: Any) -> Any:
    return printable(value) if type(value) is str else value
