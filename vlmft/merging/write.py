"""Write the merged folder: `python -m vlmft.merging.write <request>`, started by `vlmft.merge`.

First the trained model answers, then it makes room for the merged one: there is never more than one in memory.
"""

import gc
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.errors import DataError, VlmftError
from vlmft.merging.exchange import Asked, Exchange, Handover
from vlmft.merging.process import choose_device, greedy, run
from vlmft.types import Message, Sample, Video

if TYPE_CHECKING:
    import torch

    from vlmft.models import ModelSpec
    from vlmft.recipes.saved import Saved

TEXT_PROMPTS = (
    "What is in a picture?",
    "Answer with one word: which colour has the sky?",
    "Name three animals.",
    "Which digit comes after seven?",
    "Describe a street in the rain.",
    "Is a circle round? Answer yes or no.",
    "Translate to French: good morning.",
    "Count from one to ten.",
)
"""Asked where the run's data is gone."""


def write(exchange: Exchange) -> None:
    """Answer the samples with the trained model, merge it, and write the folder."""
    from vlmft import assembly, summary
    from vlmft.encoding.encoder import Encoder
    from vlmft.merging.card import model_card, prompts_need
    from vlmft.recipes.heads import copy_head
    from vlmft.recipes.merge import load_merged
    from vlmft.recipes.saved import open_saved

    console = summary.console()
    assembly.quiet_libraries()
    request = exchange.request
    device = choose_device(request.device)
    saved = open_saved(request.run, request.trust_remote_code)
    console.print(f"run      {request.run}\nbase     {saved.family.folder()}, unchanged since the training")
    samples, kind = choose_samples(saved, request.samples)
    asked, ends = answer_all(saved, samples, device, exchange, request.max_new_tokens)
    console.print(f"answered {len(asked)} {kind}, with the trained model")
    if rounds_inputs(saved):
        console.print("         its 8-bit layers dequantised: they round their inputs, which no merged model does")

    model, rounded = load_merged(saved, device)
    dtype = str(model.dtype).removeprefix("torch.")
    if rounded is not None:
        console.print(
            f"rounded  to {dtype}, the base's dtype; this changes a weight by at most {rounded.change:.2%} "
            f"({rounded.name})"
        )
    save_plain(model, saved, request.out, request.max_shard_size)
    if copy_head(saved.folder, saved.record, request.out):
        console.print("head     copied; vlmft.load_classifier loads both")
    asked_by = Encoder(saved.family, saved.load_processor()).chat.asked_by()
    if asked_by:
        console.print(f"prompts  {prompts_need(asked_by)}", markup=False)
    card = model_card(saved, request.base_model, dtype, asked_by)
    (request.out / "README.md").write_text(card, encoding="utf-8")
    exchange.put_handover(Handover(tuple(asked), *ends, str(device), coarser(dtype, saved.precision)))


def choose_samples(saved: "Saved", number: int) -> tuple[list[Sample], str]:
    """At most `number` samples, and what they are: held out, else trained on, else text where the data is gone."""
    if not number:
        return [], "samples"
    try:
        found, kind = _run_samples(saved, number)
        for sample in found:
            for path in _files(sample):
                path.stat()
        return found, kind
    except (VlmftError, OSError, KeyError):
        prompts = TEXT_PROMPTS[:number]
        return [
            Sample(f"text/{i}", (Message("user", (prompt,)),)) for i, prompt in enumerate(prompts)
        ], "text prompts, as the run's data cannot be read here"


def _run_samples(saved: "Saved", number: int) -> tuple[list[Sample], str]:
    import tempfile

    from vlmft.config.app import load_config
    from vlmft.data.run_data import open_run_data
    from vlmft.train import TrainConfig

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(saved.record["config"], encoding="utf-8")
        config = load_config(path, TrainConfig)
    data = open_run_data(config.dataset, config.eval_dataset, config.holdout, config.seed)
    if data.held_out:
        return list(islice(data.held_out_samples(number), number)), "held-out samples"
    positions = range(min(number, len(data.mixture)))
    return [data.mixture.read(data.mixture.at(i)) for i in positions], "training samples"


def answer_all(
    saved: "Saved", samples: Sequence[Sample], device: "torch.device", exchange: Exchange, max_new_tokens: int
) -> tuple[list[Asked], tuple[int | list[int] | None, int | None]]:
    """Answer each sample with the trained model; returns what was asked, and the tokens that end and pad an answer.

    A sample that cannot be read, as a run may leave some out, is named and left out here too.
    """
    import torch

    from vlmft import summary
    from vlmft.encoding.collate import Collator
    from vlmft.encoding.encoder import Encoder
    from vlmft.recipes.merge import compute_exactly

    if not samples:
        return [], (None, None)
    model, processor = saved.load(device)
    if rounds_inputs(saved):
        compute_exactly(model)
    encoder, collator = Encoder(saved.family, processor), Collator(saved.family, processor)
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = owner.generation_config.eos_token_id
    ends = (own if own is not None else processor.tokenizer.eos_token_id, collator.pad_token_id)
    asked: list[Asked] = []
    for sample in samples:
        try:
            encoded = encoder.encode_prompt(sample)
        except DataError as error:
            summary.console().print(f"left out {error}", markup=False)
            continue
        inputs = saved.family.model_inputs(processor, collator([encoded], padding_side="left").to(device).inputs)
        exchange.put_answer(len(asked), inputs, greedy(model, inputs, *ends, max_new_tokens))
        prompt = encoder.chat.prompt(encoder.planner.plan(sample, None)[0])
        prompt = saved.family.processor_text(processor, prompt)
        asked.append(Asked(sample.id, prompt, _paths(sample, saved.family)))
    del model, owner
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return asked, ends


def rounds_inputs(saved: "Saved") -> bool:
    """Whether the trained model has 8-bit layers (LLM.int8), which no merged one has."""
    return any(policy.base == "int8" for policy in saved.recipe.adapters.values())


def _paths(sample: Sample, family: "ModelSpec") -> tuple[str, ...] | None:
    """The files of a sample's pictures, as the processor alone sees them just as the training did.

    None where it does not: a video, a picture inside another file, or an entry with a budget of its own.
    """
    own = sample.rules.over(family.media_rules).image != family.media_rules.image
    if own or any(isinstance(medium, Video) or medium.data is not None for medium in sample.media):
        return None
    return tuple(str(image.path) for image in sample.images)


def _files(sample: Sample) -> Iterator[Path]:
    """Every file that a sample's pictures and videos are read from, those inside another file aside."""
    for medium in sample.media:
        if medium.data is None:
            yield from medium.frames if isinstance(medium, Video) and medium.frames else (medium.path,)


def save_plain(model: Any, saved: "Saved", folder: Path, max_shard_size: str = "5GB") -> None:
    """Write a merged model as transformers does, with the training's processor and the base's generation config."""
    from transformers import GenerationConfig

    base = saved.family.folder()
    model.generation_config = GenerationConfig()  # the base's own may be one that transformers refuses to write
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    saved.load_processor().save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    own = [base / "generation_config.json", *(base.glob("*.py") if saved.family.trust_remote_code else ())]
    for file in own:
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def coarser(dtype: str, precision: str) -> str:
    """Of the base's dtype, by torch's name, and the run's precision: the one that rounds more."""
    order = ("float64", "float32", "float16", "bfloat16")
    named = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[precision]
    return max(dtype, named, key=order.index)


if __name__ == "__main__":
    run(write)
