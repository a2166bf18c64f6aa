"""Families times recipes: what trains, what it loses, what is saved and merged, as a new process reads it.

`make test` runs the slice `Family.slice` of it, `make test-slow` all, with a new process for each family that reads
everything. Losses are recorded by `python -m tests.models.test_matrix [family ...]`; other releases of torch round
differently.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.models.families import (
    FAMILIES,
    Family,
    asked,
    collator_of,
    encoder_of,
    of_a_text,
    picture,
    processor_of,
    video,
)
from tests.models.matrix import SHIPPED, expected, trained
from tests.recipes.training import Trained, save_trained
from tests.support import CPU, PROJECT, compose, with_recipe
from vlmft.encoding.collate import Batch
from vlmft.encoding.encoder import Encoded
from vlmft.errors import ConfigError
from vlmft.recipes.groups import parameter_groups
from vlmft.recipes.merge import load_merged
from vlmft.recipes.probe import freeze_unreached
from vlmft.recipes.saved import open_saved
from vlmft.tasks.base import probe_loss
from vlmft.training.loss import supervised_loss

RECORDED = Path(__file__).with_name("recorded_losses.json")
MERGED_APART = 5e-5  # of logits around 1; a tiny model in float32, whose adapters are added in float32


def test_every_shipped_recipe_is_in_the_table() -> None:
    assert {path.stem for path in (PROJECT / "conf/recipe").glob("*.yaml")} == set(SHIPPED)


def test_a_record_for_each() -> None:
    recorded = json.loads(RECORDED.read_text())
    assert {family: set(losses) for family, losses in recorded.items()} == {f.name: set(taken(f)) for f in FAMILIES}


def taken(family: Family) -> list[str]:
    return [recipe for recipe in SHIPPED if recipe not in family.refuses]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_slice(family: Family) -> None:
    assert [problem for recipe in family.slice for problem in problems_of(family, recipe)] == []


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], dict[str, Any]]]:
    """What a new process reads of a folder; see tests/models/reload_child.py."""
    said = tmp_path_factory.mktemp("reader") / "stderr"
    command = [sys.executable, "-m", "tests.models.reload_child"]
    with (
        said.open("w") as stderr,
        subprocess.Popen(
            command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        assert process.stdin and process.stdout
        ask, answers = process.stdin, process.stdout

        def read(folder: Path) -> dict[str, Any]:
            print(folder, file=ask, flush=True)
            answer = answers.readline()
            assert answer, said.read_text()
            found: dict[str, Any] = json.loads(answer)
            return found

        yield read


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_recipe_and_what_a_new_process_reads_of_it(
    family: Family, tmp_path: Path, reader: Callable[[Path], dict[str, Any]]
) -> None:
    for number, batch in enumerate(batches(family)):
        save_file(inputs(family, batch), tmp_path / f"inputs-{number}.safetensors")
    save_file(prompt(family), tmp_path / "prompt.safetensors")
    problems = [problem for recipe in taken(family) for problem in problems_of(family, recipe, tmp_path / recipe)]
    found = reader(tmp_path)
    assert set(found) == set(taken(family))
    for recipe, read in found.items():
        # LLM.int8 also rounds a layer's inputs, which no merged model keeps.
        allowed = 0.3 if recipe == "lora_llm_int8" else MERGED_APART
        good = {"class": family.model_class, "keys": [], "loaded": 0.0, "generates": [True, True]}
        if recipe == "lora_llm_int8":
            good["generates"], read["generates"] = True, read["generates"][0]
        merged = read.pop("merged")
        if read != good or merged > allowed:
            problems.append(f"{recipe}: {read}, merged {merged}")
    assert problems == []


def problems_of(family: Family, recipe: str, folder: Path | None = None) -> Iterator[str]:
    """Take three steps under a recipe, and say what is not as it was promised; save what came of it in `folder`."""
    config = compose(f"model=tiny_{family.name}", f"recipe={recipe}")
    if recipe in family.refuses:
        with pytest.raises(ConfigError, match=family.refuses[recipe]):
            with_recipe(config)
        return
    names = [name for name, _ in config.model.load_model(CPU).named_parameters()]
    model, unreached, losses, before = three_steps(family, recipe)
    live = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    if moved != live:
        yield f"{recipe}: moved, but not trained, or the other way round: {sorted(moved ^ live)}"
    wanted, found = expected(family, recipe, names), trained(live) | trained(unreached)
    if wanted != found:
        yield f"{recipe}: trains {sorted(found - wanted)[:4]}, but not {sorted(wanted - found)[:4]}"
    if family.unreached is None and unreached:
        yield f"{recipe}: no gradient reaches {unreached[:4]}"
    recorded = json.loads(RECORDED.read_text()).get(family.name, {}).get(recipe)
    if losses != pytest.approx(recorded, rel=2e-3):
        yield f"{recipe}: losses {losses}, recorded {recorded}"
    if folder is None:
        return
    saved = save_trained(Trained(config, model, {}), folder / "final", unreached=tuple(unreached))
    merged, _ = load_merged(open_saved(saved), CPU)
    merged.save_pretrained(folder / "merged")
    with torch.no_grad():
        logits = {
            str(number): model(**inputs(family, batch), use_cache=False).logits
            for number, batch in enumerate(batches(family))
        }
        asked_for = prompt(family)
        answer = model.generate(**asked_for, max_new_tokens=6, do_sample=False)
    save_file({name: found.contiguous() for name, found in logits.items()}, folder / "logits.safetensors")
    (folder / "answer.json").write_text(json.dumps(answer[0, asked_for["input_ids"].shape[1] :].tolist()))


def three_steps(family: Family, recipe: str) -> tuple[Any, list[str], list[float], dict[str, torch.Tensor]]:
    """The model after three steps, what no gradient reaches, the losses, and the weights before."""
    config = compose(f"model=tiny_{family.name}", f"recipe={recipe}")
    torch.manual_seed(0)
    model = with_recipe(config)
    parts = (encoder_of(family), collator_of(family))
    unreached = freeze_unreached(model, lambda probed: probe_loss(probed, *parts))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, config.recipe, config.model, config.optim.lr, 0.0))
    model.train()
    losses = []
    for batch in batches(family):
        loss = supervised_loss(model, inputs(family, batch), batch.labels) / 10
        if loss.requires_grad:  # not of a text alone under a frozen LLM
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(loss.item(), 5))
    return model.eval(), unreached, losses, before


@cache
def batches(family: Family) -> list[Batch]:
    """Three micro-batches: a picture and a text; two pictures; a video where the family takes one, else a picture.

    A family that takes no text beside a picture has a fourth one.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        last = video(folder, 4, 56, 56) if family.video else picture(folder, 56, 84, 3)
        samples = [
            [
                asked(picture(folder, 56, 56), "What colour is the shape?"),
                asked(*of_a_text(family, folder), "Are you?", answer="yes"),
            ],
            [asked(picture(folder, 300, 100, 1), picture(folder, 60, 90, 2), "Same?", answer="no")],
            [asked(last, "What is seen here?", answer="blue")],
        ]
        encoder, collator = encoder_of(family), collator_of(family)
        groups = [[encoder.encode(sample) for sample in group] for group in samples]
        cut = [part for group in groups for part in of_one_kind(group, collator.kinds(group))]
        return [collator(part) for part in cut]


def of_one_kind(group: list[Encoded], kinds: list[int]) -> list[list[Encoded]]:
    """A micro-batch in as many as the family needs, which is one for most."""
    return [[item for item, own in zip(group, kinds, strict=True) if own == kind] for kind in dict.fromkeys(kinds)]


def inputs(family: Family, batch: Batch) -> dict[str, torch.Tensor]:
    """What the model's forward takes of a batch."""
    found = family.spec.model_inputs(processor_of(family.name), dict(batch.inputs))
    return {name: tensor.contiguous() for name, tensor in found.items()}


def prompt(family: Family) -> dict[str, torch.Tensor]:
    """A question about a picture, for the model to answer."""
    with TemporaryDirectory() as name:
        encoded = encoder_of(family).encode_prompt(asked(picture(Path(name), 56, 84, 7), "What colour?"))
    return inputs(family, collator_of(family)([encoded], padding_side="left"))


if __name__ == "__main__":
    record = json.loads(RECORDED.read_text())
    for family in FAMILIES:
        if family.name in sys.argv[1:] or not sys.argv[1:]:
            record[family.name] = {recipe: three_steps(family, recipe)[2] for recipe in taken(family)}
    RECORDED.write_text(json.dumps(record, indent=1) + "\n")
