"""GRPO on every family: generation and training agree on a completion, and pictures and videos decide it."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.families import FAMILIES, Family, asked, collator_of, picture, processor_of, video
from tests.support import CPU, save_noise
from tests.training.agreement import check
from tests.training.rolling import drawn, objective
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.encoding.generating import answer_text
from vlmft.encoding.loading import EncodedGroup
from vlmft.models.shared_vision import SharedVision
from vlmft.scoring import Format
from vlmft.types import Sample, Solution, Video

APART = {"mllama"}
"""Families whose LLM looks at the tower's states by itself."""
_FAST = ("qwen25vl", "internvl3")
BOTH = [
    pytest.param(family, marks=() if family.name in _FAST else pytest.mark.slow, id=family.name) for family in FAMILIES
]
SHORT, LONG = "What is it?", "Which of these colours has the shape in the middle of the picture?"


def prompts(family: Family, *samples: Sample) -> list[Encoded]:
    encoder = Encoder(family.spec, processor_of(family.name), learns=Solution)
    return [encoder.encode(sample) for sample in samples]


def differ(made: Any, group: Sequence[Encoded], others: Sequence[Encoded]) -> bool:
    """Whether the completions of `group` have other log-probs behind `others`' pictures."""
    completions = made.begin(0, EncodedGroup(list(group)))
    swapped = [
        replace(one, encoded=replace(one.encoded, media=other.media))
        for one, other in zip(completions, [other for other in others for _ in range(3)], strict=True)
    ]
    own, found = made.log_probs(completions), made.log_probs(swapped)
    return all((a - b).abs().max() > 1e-4 for a, b in zip(own, found, strict=True))


@pytest.mark.parametrize("family", BOTH)
def test_generation_and_training_agree(family: Family, tmp_path: Path) -> None:
    model = family.spec.load_model(CPU)
    samples = (asked(picture(tmp_path, 56, 56, 1), SHORT), asked(picture(tmp_path, 56, 84, 2), LONG))
    check(model, prompts(family, *samples), collator_of(family))


@pytest.mark.parametrize("family", BOTH)
def test_another_picture_changes_the_completions_log_probs(family: Family, tmp_path: Path) -> None:
    model = family.spec.load_model(CPU)
    group, others = (prompts(family, asked(picture(tmp_path, 56, 56, seed), SHORT)) for seed in (1, 2))
    assert differ(objective(model, collator_of(family)), group, others)


@pytest.mark.parametrize("family", BOTH)
def test_completions_of_a_prompt_see_its_media_once(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are, with their log-probs, what they are where each sees them for itself."""
    model = family.spec.load_model(CPU)
    shown = [asked(picture(tmp_path, 56, 56, 1), SHORT), asked(picture(tmp_path, 56, 84, 2), LONG)]
    if family.video:
        shown.append(asked(video(tmp_path / "film", 4, 56, 56), SHORT))
    numbers: list[int] = []

    def count(module: Any, args: Any, kwargs: Any) -> None:
        numbers.append((args[0] if args else kwargs["pixel_values"]).numel())

    tower = model.get_submodule(family.spec.component_paths["vision_tower"][0])
    tower.register_forward_pre_hook(count, with_kwargs=True)
    found = {}
    for shared in (True, False):
        if not shared:
            monkeypatch.setattr(SharedVision, "repeated", lambda self, times: nullcontext())
        numbers.clear()
        made = objective(model, collator_of(family), top_k=1, rollout_batch_size=32)
        completions = made.begin(0, EncodedGroup(prompts(family, *shown)))
        logps = made.log_probs(completions)
        found[shared] = drawn(completions), logps, sum(numbers)
    assert found[True][0] == found[False][0]
    for one, other in zip(found[True][1], found[False][1], strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-3)
    assert found[True][2] * (1 if family.name in APART else 3) == found[False][2]


@pytest.mark.parametrize("family", [param for param in BOTH if param.values[0].video])
def test_other_frames_change_the_completions_log_probs(family: Family, tmp_path: Path) -> None:
    """And their order does: a video is no set of pictures."""
    model = family.spec.load_model(CPU)
    shown = video(tmp_path / "a", 4, 56, 56)
    other = [save_noise(tmp_path / "b" / f"{i}.png", 56, 56, seed=50 + i) for i in range(4)]
    films = (shown, Video(tmp_path / "b", tuple(other), shown.fps), replace(shown, frames=shown.frames[::-1]))
    group, others, reversed_ = (prompts(family, asked(film, SHORT)) for film in films)
    made = objective(model, collator_of(family))
    assert differ(made, group, others)
    assert differ(made, group, reversed_)


def test_thinking_that_the_prompt_opens_is_part_of_the_completion(tmp_path: Path) -> None:
    """Qwen3.5's template does; a completion that closes it would never have the form <think>...</think> otherwise."""
    family = next(one for one in FAMILIES if one.name == "qwen35")
    (prompt,) = prompts(family, asked(picture(tmp_path, 56, 56), SHORT, answer="<think>A.</think><answer>b</answer>"))
    tokenizer = processor_of(family.name).tokenizer
    said = tokenizer.encode("It is red.</think><answer>red</answer>", add_special_tokens=False)
    text = answer_text(prompt, torch.tensor(said), collator_of(family))
    assert text == "<think>\nIt is red.</think><answer>red</answer>"
    assert Format().score(text, "") == 1.0
    other = next(one for one in FAMILIES if one.name == "qwen25vl")
    (plain,) = prompts(other, asked(picture(tmp_path, 56, 56), "What does <think> mean?"))
    ids = torch.tensor(processor_of(other.name).tokenizer.encode("red"))
    assert answer_text(plain, ids, collator_of(other)) == "red"


def test_a_step_over_pictures_and_videos_reaches_the_tower(tmp_path: Path) -> None:
    family = next(one for one in FAMILIES if one.name == "qwen25vl")
    model = family.spec.load_model(CPU)
    model.requires_grad_(True)
    samples = (asked(picture(tmp_path, 56, 56), SHORT), asked(video(tmp_path, 4, 56, 56), LONG), asked(LONG))
    made = objective(model, collator_of(family))
    completions = made.begin(0, EncodedGroup(prompts(family, *samples)))
    made.share(model, completions, made.weights(completions)).loss.backward()
    assert torch.stack([p.grad.abs().max() for p in model.model.visual.parameters()]).min() > 0
