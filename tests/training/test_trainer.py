import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from tests.support import compose, literally
from tests.training.conftest import Bench
from vlmft.encoding.collate import Batch
from vlmft.encoding.loading import EncodedGroup
from vlmft.errors import ConfigError, DataError, NumericError, PreemptedError
from vlmft.training import arguments, sft, trainer
from vlmft.training.flops import FlopRates
from vlmft.training.loss import supervised_loss
from vlmft.training.stop import StopRequest

MakeBench = Callable[..., Bench]

ALL = ("global_batch_size=6", "trainer.max_steps=3", "trainer.num_workers=0", "optim.warmup=0")


class AtEachStep(TrainerCallback):
    """Calls functions at a step's end and just before the update."""

    def __init__(self, end: Callable[..., Any] | None = None, before: Callable[..., Any] | None = None) -> None:
        self.end, self.before = end, before

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if self.end:
            self.end()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        if self.before:
            self.before()


def same_gradients(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The largest difference between two gradients, as a share of the largest entry."""
    assert one.keys() == other.keys()
    largest = max(float(gradient.abs().max()) for gradient in one.values())
    return max(float((one[name] - other[name]).abs().max()) for name in one) / largest


class TestOneStep:
    @pytest.mark.parametrize("words", [("recipe=fft",), ("recipe=lora_llm",)])
    def test_is_the_same_in_one_micro_batch_as_in_many(self, bench: MakeBench, words: tuple[str, ...]) -> None:
        """Text-only, one-image and two-image samples of different lengths: 1 of 8 against 8 of 1, and cuts between."""
        made = bench(*words, "global_batch_size=8", "trainer.max_steps=1")
        made.model.eval()  # no dropout: it would differ by the cut
        step = made.step()
        longest = max(sample.num_tokens for sample in step.samples)
        assert {len(sample.media) for sample in step.samples} == {0, 1, 2}
        results = {}
        for name, batching, max_tokens, micro_batches in [
            ("whole", "grouped", 8 * longest, 1),
            ("singles", "grouped", longest, 8),
            ("cut", "grouped", 3 * longest, None),
            ("padded", "padded", 3 * longest, None),
        ]:
            made.trainer.parts.batching = compose(f"batching={batching}", f"batching.max_tokens={max_tokens}").batching
            if name == "singles":  # the budget alone would still let two short samples share
                made.trainer.parts.batching = Singles(max_tokens=longest)
            results[name] = made.gradients(step)
            read = made.trainer.meters.read()
            if micro_batches:
                assert read["micro_batches"] == micro_batches
            else:
                assert 1 < read["micro_batches"] < 8
        loss, gradients = results.pop("whole")
        for name, (other_loss, other_gradients) in results.items():
            assert other_loss == pytest.approx(loss, rel=1e-6), name
            assert same_gradients(gradients, other_gradients) < 1e-6, name

    def test_samples_that_cannot_share_a_batch_are_cut_apart(
        self, bench: MakeBench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = bench(*ALL, "global_batch_size=8", "trainer.max_steps=1")
        made.model.eval()
        step = made.step()
        loss, gradients = made.gradients(step)
        monkeypatch.setattr(type(made.trainer.parts.collator.family), "batch_kind", lambda self, media: len(media))
        kinds = []
        forward = made.trainer.parts.collator.__call__
        monkeypatch.setattr(
            type(made.trainer.parts.collator),
            "__call__",
            lambda self, samples, *side: (kinds.append({len(sample.media) for sample in samples}), forward(samples))[1],
        )
        other_loss, other_gradients = made.gradients(step)
        assert sorted(map(len, kinds)) == [1, 1, 1] and set.union(*kinds) == {0, 1, 2}
        assert made.trainer.meters.read()["micro_batches"] == 3
        assert other_loss == pytest.approx(loss, rel=1e-6)
        assert same_gradients(gradients, other_gradients) < 1e-6

    @pytest.mark.parametrize("recipe", ["projector", "ln_vt"])
    def test_text_alone_under_a_frozen_llm_adds_to_the_loss_and_nothing_to_the_gradient(
        self, bench: MakeBench, recipe: str
    ) -> None:
        made = bench(f"recipe={recipe}", *ALL)
        step = made.step()
        assert sum(not sample.media for sample in step.samples) == 1
        loss, gradients = made.gradients(step)
        made.trainer.parts.batching = Singles(max_tokens=8192)
        other_loss, other_gradients = made.gradients(step)
        assert other_loss == pytest.approx(loss, rel=1e-6)
        assert same_gradients(gradients, other_gradients) < 1e-6
        text = EncodedGroup([sample for sample in step.samples if not sample.media])
        alone, nothing = made.gradients(text)
        assert alone > 1 and not any(gradient.any() for gradient in nothing.values())

    def test_is_the_mean_over_the_steps_supervised_tokens(self, bench: MakeBench) -> None:
        made = bench(*ALL)
        step = made.step()
        tokens = sum(sample.num_supervised for sample in step.samples)
        total = 0.0
        for sample in step.samples:
            batch: Batch = made.trainer.parts.collator([sample])
            family, processor = made.trainer.parts.collator.family, made.trainer.parts.collator.processor
            inputs = family.model_inputs(processor, batch.inputs)
            total += float(supervised_loss(made.model, inputs, batch.labels).detach())
        assert made.gradients(step)[0] == pytest.approx(total / tokens, rel=1e-6)

    def test_counts_what_it_held(self, bench: MakeBench) -> None:
        rates = FlopRates(token=3e9, token_pair=2e7, vision_token=5e9, supervised_token=7e9)
        made = bench(*ALL, flops=rates)
        step = made.step()
        made.trainer.meters.restart()
        made.gradients(step)
        read = made.trainer.meters.read()
        lengths = [sample.num_tokens for sample in step.samples]
        per_sample = {name: read[f"{name}_per_s"] / read["samples_per_s"] for name in ("tokens", "vision_tokens")}
        assert per_sample["tokens"] == pytest.approx(sum(lengths) / 6)
        assert per_sample["vision_tokens"] == pytest.approx((4 + 8 + 6 + 6 + 8 + 4) / 6)
        assert read["padding"] == pytest.approx(1 - sum(lengths) / (6 * max(lengths)))
        squares, supervised = (
            sum(length**2 for length in lengths),
            sum(sample.num_supervised for sample in step.samples),
        )
        work = 3e9 * sum(lengths) + 2e7 * squares + 5e9 * 36 + 7e9 * supervised
        assert read["useful_tflops"] * 1e12 / read["samples_per_s"] == pytest.approx(work / 6)
        assert read["mfu"] is None

    def test_without_a_supervised_token_is_an_error(self, bench: MakeBench) -> None:
        made = bench(*ALL)
        step = made.step()
        for sample in step.samples:
            sample.supervised[1:] = False  # the first token has no prediction: it does not count
        before = made.weights()
        with pytest.raises(NumericError, match="^step 1 has no supervised token. The samples: mine/") as caught:
            made.trainer.training_step(made.model, step)
        assert all(sample.id in str(caught.value) for sample in step.samples)
        assert (caught.value.step, caught.value.samples) == (1, tuple(sample.id for sample in step.samples))
        assert made.weights() == before


class Singles(type(compose().batching)):  # type: ignore[misc]
    """One sample a micro-batch, whatever the budget."""

    def micro_batches(self, lengths: Any, at_least: int = 1, kinds: Any = None) -> list[list[int]]:
        return [[index] for index in range(len(lengths))]


class Growing(type(compose().batching)):  # type: ignore[misc]
    """A small micro-batch before a large one, which is cut where more are asked for."""

    def micro_batches(self, lengths: Any, at_least: int = 1, kinds: Any = None) -> list[list[int]]:
        return [[0, 1], [2, 3, 4, 5]] if at_least <= 2 else [[0, 1], [2, 3], [4], [5]]


class TestNumbers:
    def test_a_loss_that_is_no_number_stops_before_the_update(self, bench: MakeBench) -> None:
        made = bench(*ALL)
        with torch.no_grad():
            made.model.get_input_embeddings().weight[3, 5] = math.nan
        before = made.weights()
        expected = "the loss of step 1 is nan; the weights were not updated. The samples: mine/"
        with pytest.raises(NumericError, match=f"^{literally(expected)}") as caught:
            made.trainer.train()
        assert caught.value.exit_code == 3
        assert str(caught.value).endswith("Lower optim.lr, or look at these samples")
        assert made.weights() == before
        assert made.lines == []

    def test_a_later_bad_loss_leaves_the_last_good_weights(
        self, bench: MakeBench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = bench(*ALL)
        kept: list[bytes] = []
        made.trainer.add_callback(AtEachStep(end=lambda: kept.append(made.weights())))

        def loss(model: Any, inputs: Any, labels: Any) -> torch.Tensor:
            return supervised_loss(model, inputs, labels) * (math.inf if len(kept) == 2 else 1)

        monkeypatch.setattr(sft, "supervised_loss", loss)
        before = made.weights()
        with pytest.raises(NumericError, match="^the loss of step 3 is inf; "):
            made.trainer.train()
        assert len({before, *kept}) == 3
        assert made.weights() == kept[-1]

    def test_a_gradient_that_is_no_number_stops_as_well(
        self, bench: MakeBench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = bench(*ALL)

        def loss(model: Any, inputs: Any, labels: Any) -> torch.Tensor:
            zero = model.get_input_embeddings().weight.square().sum() * 0
            return supervised_loss(model, inputs, labels) + zero.sqrt()  # 0, with the gradient inf * 0

        monkeypatch.setattr(sft, "supervised_loss", loss)
        before = made.weights()
        with pytest.raises(NumericError, match="^the gradient norm of step 1 is nan; the weights were not updated"):
            made.trainer.train()
        assert made.weights() == before

    def test_gradients_are_scaled_down_to_the_given_norm(self, bench: MakeBench) -> None:
        made = bench(*ALL, "optim.max_grad_norm=0.25")
        norms: list[float] = []

        def measure() -> None:
            squares = [float(p.grad.double().square().sum()) for p in made.model.parameters() if p.grad is not None]
            norms.append(math.sqrt(math.fsum(squares)))

        made.trainer.add_callback(AtEachStep(before=measure))
        made.trainer.train()
        assert norms == [pytest.approx(0.25, rel=1e-4)] * 3
        assert all(line["grad_norm"] > 1 for line in made.lines)  # as they were


class TestBadSamples:
    def spoil(self, data_file: Path) -> None:
        """Damage the picture of the samples `one` and `system`."""
        (data_file.parent / "0.png").write_bytes(b"no picture")

    def test_stop_the_run_and_are_named(self, bench: MakeBench, data_file: Path) -> None:
        made = bench(*ALL)
        self.spoil(data_file)
        before = made.weights()
        with pytest.raises(DataError, match=r"0\.png is no picture in a known format") as caught:
            made.trainer.train()
        assert sorted(problem.split()[0] for problem in caught.value.problems[:-1]) == ["mine/one", "mine/system"]
        assert caught.value.problems[-1] == "2 bad samples, max_bad_samples=0"
        assert caught.value.exit_code == 2
        assert made.weights() == before

    def test_are_left_out_counted_and_listed_where_allowed(self, bench: MakeBench, data_file: Path) -> None:
        made = bench(*ALL, "max_bad_samples=2")
        self.spoil(data_file)
        made.trainer.train()
        losses = [line for line in made.lines if "loss" in line]
        assert [line["bad_samples"] for line in losses] == [2, 2, 2]  # met in every pass, counted once
        listed = {line["bad_sample"]: line for line in made.lines if "bad_sample" in line}
        assert sorted(listed) == ["mine/one", "mine/system"]
        assert sum("bad_sample" in line for line in made.lines) == 2
        assert listed["mine/one"]["step"] == 1
        assert listed["mine/one"]["reason"].startswith(f"mine/one ({data_file}:1, row 0): ")

    def test_nothing_takes_their_place(self, bench: MakeBench, data_file: Path) -> None:
        made = bench(*ALL, "max_bad_samples=2")
        whole = made.step()
        self.spoil(data_file)
        step = made.step()
        assert len(step.samples) == 4
        kept = EncodedGroup([sample for sample in whole.samples if sample.id not in ("mine/one", "mine/system")])
        assert made.gradients(step)[0] == pytest.approx(made.gradients(kept)[0], rel=1e-6)

    def test_a_step_with_no_good_sample_is_an_error(self, bench: MakeBench, data_file: Path) -> None:
        made = bench("global_batch_size=1", "trainer.max_steps=6", "trainer.num_workers=0", "max_bad_samples=6")
        self.spoil(data_file)
        with pytest.raises(DataError, match=r"^step \d: no usable sample is left for 1 of the ranks") as caught:
            made.trainer.train()
        assert caught.value.exit_code == 2


class TestOutOfMemory:
    """A device that holds two samples at once, stood in for by a loss function that takes no more."""

    @pytest.fixture
    def sizes(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """The micro-batches that were tried. The memory runs out in a later one: the earlier leave gradients behind."""
        tried: list[int] = []

        def loss(model: Any, inputs: Any, labels: Any) -> torch.Tensor:
            tried.append(len(labels))
            found = supervised_loss(model, inputs, labels)
            if len(labels) > 2 and len(tried) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return found

        monkeypatch.setattr(sft, "supervised_loss", loss)
        return tried

    def test_the_step_is_the_same_in_finer_micro_batches(
        self, bench: MakeBench, sizes: list[int], caplog: pytest.LogCaptureFixture
    ) -> None:
        whole = bench(*ALL)
        expected_loss, expected = whole.gradients(whole.step())
        assert sizes == [6]
        made = bench(*ALL, batching=Growing(max_tokens=8192), max_oom_retries=2)
        loss, gradients = made.gradients(made.step())
        assert sizes[1:] == [2, 4, 2, 2, 1, 1]
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
        (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
        assert warning == (
            "step 1: CUDA out of memory. Tried to allocate 2.00 GiB.; it is tried again, and micro-batches are cut to "
            "1/2 from here on (trainer.oom_retries)"
        )
        del sizes[:]
        made.gradients(made.step())
        assert max(sizes) <= 2  # the next step does not run into it again

    def test_it_ends_where_the_retries_are_used_up(self, bench: MakeBench, sizes: list[int]) -> None:
        sizes.append(0)
        made = bench(*ALL, "batching.max_tokens=8192", max_oom_retries=1)
        before = made.weights()
        with pytest.raises(torch.OutOfMemoryError):
            made.trainer.train()
        assert sizes[1:] == [6, 3]
        assert made.weights() == before

    def test_it_ends_where_one_sample_is_too_much(self, bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
        def loss(model: Any, inputs: Any, labels: Any) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory.")

        monkeypatch.setattr(sft, "supervised_loss", loss)
        made = bench(*ALL, max_oom_retries=100)
        with pytest.raises(torch.OutOfMemoryError):
            made.trainer.train()
        assert made.trainer.oom_retries == 3  # 1, 2, 4, 6 micro-batches of 6 samples

    def test_is_refused_where_other_ranks_would_wait(self, bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(arguments, "world_size", lambda: 2)
        with pytest.raises(
            ConfigError, match=literally("trainer.oom_retries: 2 works on one rank alone, there are 2:")
        ):
            bench(*ALL, "trainer.oom_retries=2")


class TestStopping:
    def test_a_wish_to_stop_is_obeyed_after_the_step(self, bench: MakeBench) -> None:
        stop = StopRequest(deferred=True)
        made = bench(*ALL, stop=stop)

        def ask() -> None:
            stop.reason = "SIGTERM received"

        made.trainer.add_callback(AtEachStep(end=ask))
        with pytest.raises(PreemptedError, match="^SIGTERM received; stopped after step 1$"):
            made.trainer.train()


class TestOptimiser:
    @pytest.mark.parametrize("optim", ["adamw", "adamw_8bit", "adafactor", "muon", "transformers"])
    def test_every_optimiser_moves_every_trained_weight(self, bench: MakeBench, optim: str) -> None:
        made = bench(*ALL, f"optim={optim}", "trainer.max_steps=1")
        before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
        made.trainer.train()
        moved = {name: not torch.equal(before[name], p) for name, p in made.model.named_parameters()}
        assert [name for name, has in moved.items() if not has] == []
        inner = made.trainer.optimizer.optimizer  # accelerate's wrapper
        assert (
            type(inner).__name__
            == {
                "adamw": "AdamW",
                "adamw_8bit": "AdamW8bit",
                "adafactor": "Adafactor",
                "muon": "JoinedOptimizer",
                "transformers": "AdamW",
            }[optim]
        )

    def test_muon_moves_the_matrices_of_hidden_layers_and_adamw_the_rest(self, bench: MakeBench) -> None:
        """Against torch's own two optimisers, each on its share of the same gradients."""
        words = (*ALL, "optim.lr=1e-3", "trainer.max_steps=2", "optim.schedule=constant", "optim.warmup=0")
        made = bench(*words, "optim=muon", "optim.max_grad_norm=1e9")
        twin = bench(*words, "optim=muon")
        groups = twin.trainer.parts.groups(twin.model)
        muon = torch.optim.Muon([g for g in groups if g["is_matrix"]], momentum=0.95, adjust_lr_fn="match_rms_adamw")
        adamw = torch.optim.AdamW([g for g in groups if not g["is_matrix"]], fused=True)
        for number in range(2):
            twin.gradients(twin.step(number))
            muon.step()
            adamw.step()
        made.trainer.train()
        for (name, found), expected in zip(made.model.named_parameters(), twin.model.parameters(), strict=True):
            assert torch.equal(found, expected), name

    def test_one_of_transformers_names(self, bench: MakeBench) -> None:
        made = bench(*ALL, "optim=transformers", "optim.name=lion_32bit", "optim.arguments={betas: [0.5, 0.6]}")
        optimiser = made.trainer.create_optimizer()
        assert type(optimiser).__name__ == "Lion"
        assert {tuple(group["betas"]) for group in optimiser.param_groups} == {(0.5, 0.6)}

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["optim.name=adamw_tors"], "optim.name: there is no 'adamw_tors'; known: adamw_torch, "),
            (["optim.name=galore_adamw"], "optim.name: galore_adamw cannot be used here: "),
            (["optim.arguments={bats: 1}"], "optim.name: adamw_torch cannot be used here: "),
        ],
    )
    def test_one_that_cannot_be_used_is_refused(self, bench: MakeBench, words: list[str], message: str) -> None:
        made = bench(*ALL, "optim=transformers", *words)
        with pytest.raises(ConfigError, match=f"^{literally(message)}"):
            made.trainer.create_optimizer()

    def test_has_the_recipes_groups(self, bench: MakeBench) -> None:
        """The tower a tenth of the LLM's rate; norms, biases and other vectors undecayed; each weight in one group."""
        made = bench(*ALL, "optim.lr=1e-3", "optim.weight_decay=0.05", "optim.eps=1e-7")
        optimiser = made.trainer.create_optimizer()
        groups: dict[tuple[str, float, float], list[str]] = defaultdict(list)
        for group in optimiser.param_groups:
            groups[group["component"], round(group["lr"], 9), group["weight_decay"]] += group["names"]
        rates = {"vision_tower": 1e-4, "projector": 1e-3, "llm": 1e-3}
        assert set(groups) == {(name, rate, decay) for name, rate in rates.items() for decay in (0.05, 0.0)}
        names = sum(groups.values(), [])
        assert sorted(names) == sorted(name for name, _ in made.model.named_parameters())
        undecayed = sum((found for (_, _, decay), found in groups.items() if decay == 0), [])
        assert all(name.endswith(".bias") or "norm" in name or "ln_q" in name for name in undecayed)
        assert {group["eps"] for group in optimiser.param_groups} == {1e-7}

    def test_warmup_and_cosine(self, bench: MakeBench) -> None:
        words = ("global_batch_size=6", "trainer.num_workers=0", "trainer.max_steps=10")
        made = bench(*words, "optim.lr=2e-3", "optim.warmup=0.2")
        made.trainer.train()
        expected = [0.0, 1e-3] + [1e-3 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
        assert [line["learning_rate"] for line in made.lines] == [pytest.approx(rate, abs=1e-12) for rate in expected]


class TestLines:
    def test_a_line_every_so_many_steps(self, bench: MakeBench) -> None:
        made = bench(*ALL, "trainer.max_steps=5", "trainer.log_every=2")
        every = bench(*ALL, "trainer.max_steps=5")
        made.trainer.train()
        every.trainer.train()
        assert [line["step"] for line in made.lines] == [2, 4]
        losses = [line["loss"] for line in every.lines]
        assert made.lines[1]["loss"] == pytest.approx((losses[2] + losses[3]) / 2, rel=1e-5)
        assert [line["pass"] for line in every.lines] == [1, 2, 3, 4, 5]

    def test_training_lowers_the_loss(self, bench: MakeBench) -> None:
        made = bench(*ALL, "trainer.max_steps=12")
        made.trainer.train()
        losses = [line["loss"] for line in made.lines]
        assert losses[-1] < losses[0] / 2

    def test_gradient_checkpointing_changes_no_number(self, bench: MakeBench) -> None:
        plain, frugal = bench(*ALL), bench(*ALL, "trainer.gradient_checkpointing=true")
        plain.trainer.train()
        calls: list[bool] = []
        layer = frugal.model.model.language_model.layers[0]
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(torch.is_grad_enabled()))
        frugal.trainer.train()
        assert len(calls) == 2 * 3  # forward, and once more in the backward pass
        assert frugal.weights() == plain.weights()
        assert [line["loss"] for line in frugal.lines] == [line["loss"] for line in plain.lines]


def test_other_ranks_than_asked_for_are_refused(bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "world_size", lambda: 2)
    with pytest.raises(
        ConfigError, match=r"^2 ranks were asked for, accelerate runs on 1 \(DistributedType.NO\); unset"
    ):
        bench(*ALL)
