"""Rollouts by a server: what it is sent and gives, what it has to compute with, and what is said where it does not."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import (
    compose,
    encoding,
    literally,
    noise,
    read_llava,
    tiny,
    tiny_processor,
    with_recipe,
    write_llava,
)
from tests.training.rolling import figures, gradients, objective, prompts, spec
from tests.training.standin import StandIn, serving
from vlmft.config.media import PixelBudget
from vlmft.encoding.encoder import Encoded
from vlmft.encoding.loading import EncodedGroup
from vlmft.errors import ConfigError, DataError, ServerError, StorageError
from vlmft.recipes.snapshot import merged_weights
from vlmft.scoring import MetricSpec, Reward
from vlmft.training.rollouts import OwnRoller, Rollout
from vlmft.training.rollouts_spec import VllmRollouts
from vlmft.training.server_rollouts import ServerRollouts, Weights
from vlmft.training.vllm_server import look_at
from vlmft.types import Clip

ADAPTER = ("recipe=lora_llm", "recipe/policy@recipe.projector=frozen")
ADAPTERS_AND_MORE = ("recipe=lora_vt_llm",)
DORA = ("recipe=dora_llm",)


@pytest.fixture(scope="module")
def standin() -> Iterator[StandIn]:
    with serving() as made:
        yield made


@pytest.fixture
def server(standin: StandIn) -> Iterator[StandIn]:
    """A server as it is after its start."""
    started = dict(vars(standin))
    standin.asked, standin.adapters = [], {}
    yield standin
    vars(standin).update(started)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Encoded]:
    """Prompts with one picture, two, none, and several turns."""
    return prompts(read_llava(write_llava(tmp_path_factory.mktemp("data"))))[:4]


def rollouts(server: StandIn, **changes: Any) -> VllmRollouts:
    """conf/trainer/rollouts/vllm.yaml for the stand-in, with some values changed."""
    found = compose(
        "trainer=grpo", "trainer/rollouts=vllm", f"trainer.rollouts.urls=[{server.url}]", "trainer.rollouts.model=tiny"
    )
    made = getattr(found.trainer, "rollouts")  # noqa: B009 (of a trainer's own class)
    return VllmRollouts(**(dict(made) | {"wait_s": 0.0} | changes))


class Letters(MetricSpec):
    """The share of a text's characters that are e, a or o."""

    def score(self, prediction: str, reference: str) -> float:
        return sum(letter in "eao" for letter in prediction) / max(len(prediction), 1)


Rolls = Callable[..., ServerRollouts]


@pytest.fixture
def rolls(server: StandIn, tmp_path: Path) -> Rolls:
    """Make the rollouts of a model by the stand-in."""

    def make(model: Any, *words: str, seed: int = 0, sampling: Any = None, **changes: Any) -> ServerRollouts:
        own = rollouts(server, **changes)
        config = compose(*words)
        way = own.way(config.recipe, config.model)
        made = spec(rollouts=own, **(sampling or {}))
        return ServerRollouts(made, model, encoding()[1], way, tmp_path / "weights", torch.float32, seed)

    return make


def trained(*words: str, seed: int = 1) -> Any:
    """A model whose every trained weight has moved a little, and of which every sixth token ends an answer."""
    model = with_recipe(compose(*words))
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=random)
    owner = model.get_base_model() if hasattr(model, "get_base_model") else model
    owner.generation_config.eos_token_id = list(range(0, 555, 6))
    return model.train()


def ids(rolled: list[list[Rollout]]) -> list[list[list[int]]]:
    return [[one.ids.tolist() for one in group] for group in rolled]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(ADAPTER, id="adapter"),
        pytest.param(DORA, id="dora"),
        pytest.param(ADAPTERS_AND_MORE, marks=pytest.mark.slow, id="merged"),
        pytest.param(("recipe=fft",), marks=pytest.mark.slow, id="full"),
    ],
)
def test_the_likeliest_tokens_are_those_of_the_model_that_trains(
    rolls: Rolls, server: StandIn, asked: list[Encoded], words: tuple[str, ...]
) -> None:
    model, greedy = trained(*words), {"top_k": 1, "num_generations": 2}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = rolls(model, *words, sampling=greedy, correction="none")(0, asked)
    expected = OwnRoller(model, encoding()[1], spec(**greedy), 0)(0, asked)
    assert ids(found) == ids(expected) and len({str(group) for group in ids(found)}) > 1
    assert [[one.text for one in group] for group in found] == [[one.text for one in group] for group in expected]
    assert [[one.ended for one in group] for group in found] == [[one.ended for one in group] for group in expected]
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())  # merging leaves no trace


@pytest.mark.parametrize(
    "words",
    [pytest.param(ADAPTER, marks=pytest.mark.slow, id="adapter"), pytest.param(ADAPTERS_AND_MORE, id="merged")],
)
def test_the_servers_weights_are_the_trainers_at_every_step(
    rolls: Rolls, server: StandIn, asked: list[Encoded], words: tuple[str, ...]
) -> None:
    model = trained(*words)
    made = objective(model, roller=rolls(model, *words), rollouts=rollouts(server))
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(2):
        completions = made.begin(step, EncodedGroup(asked))
        said = figures(made, completions)
        # As much as the two tokens of pictures have in common of 555: the trainer counts them, and none is ever drawn.
        assert said["sampling/logp_difference"] < 0.02 and said["sampling/weight"] == pytest.approx(1, abs=0.1)
        assert said["sampling/masked"] == 0
        gradients(made, [completions])
        optimiser.step()
    made.begin(2, EncodedGroup(asked))
    (theirs,) = server.adapters.values() or [server.model]
    found, expected = (dict(merged_weights(one, torch.float32)) for one in (theirs, model))
    start = dict(merged_weights(with_recipe(compose(*words)), torch.float32))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5)
    assert any(not torch.equal(value, start[name]) for name, value in expected.items())
    (left,) = (made.roller.folder).iterdir()  # only the newest weights lie there
    assert left.name.endswith("-step-2")


def test_loss_and_gradient_are_those_of_own_rollouts_with_the_same_tokens(
    rolls: Rolls, server: StandIn, asked: list[Encoded]
) -> None:
    model = trained("recipe=fft")
    by_server = objective(model, roller=rolls(model), rollouts=rollouts(server, correction="none"))
    completions = by_server.begin(0, EncodedGroup(asked))
    again: list[list[Rollout]] = [[] for _ in asked]
    for number, one in enumerate(completions):
        again[number // 3].append(Rollout(one.rollout.ids, one.rollout.ended, one.rollout.text))
    own = objective(model, roller=lambda step, prompts: again)
    same = own.begin(0, EncodedGroup(asked))
    assert [one.reward for one in same] == [one.reward for one in completions]
    loss, found = gradients(by_server, [completions])
    expected_loss, expected = gradients(own, [same])
    assert loss == pytest.approx(expected_loss, abs=1e-5) and abs(loss) > 1e-3
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-3)


def test_what_is_drawn_depends_on_seed_step_and_sample_alone(rolls: Rolls, asked: list[Encoded]) -> None:
    model, asked = trained(), asked[:2]
    found = rolls(model)(3, asked)
    assert {one.ended for group in found for one in group} == {True, False}
    first = ids(found)
    assert ids(rolls(model)(3, asked[::-1])) == first[::-1]  # as it would be on another number of ranks
    assert len({str(group) for group in first[0]}) > 1
    assert ids(rolls(model)(4, asked)) != first and ids(rolls(model, seed=1)(3, asked)) != first
    twice = ids(rolls(model)(3, [asked[0], asked[0]]))
    assert twice[0] == first[0] and twice[1] != first[0]


def test_the_run_samples_by_its_own_settings(rolls: Rolls, server: StandIn, asked: list[Encoded]) -> None:
    changed = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.01, "repetition_penalty": 1.2}
    more = {"max_new_tokens": 5, "num_generations": 4}
    rolls(trained(), sampling=changed | more, correction="none")(0, asked[:1])
    (body,) = [body for path, body in server.asked if path.endswith("generate")][1:]  # the first is the check
    how = body["sampling_params"]
    assert {name: how[name] for name in changed} == changed
    assert (how["n"], how["max_tokens"], how["stop_token_ids"]) == (4, 5, list(range(0, 555, 6)))


FAULTS: list[tuple[dict[str, Any], str]] = [
    (
        {"scale_out": False},
        "step 1: {url}/inference/v1/generate: 403: Scale-out endpoints are disabled. Restart vllm serve with ...; "
        "start the server with --enable-scale-out",
    ),
    (
        {"lora": False},
        "/v1/load_lora_adapter: 404: Not Found; start the server with --enable-lora and VLLM_ALLOW_RUNTIME",
    ),
    ({"key": "secret"}, "/v1/load_lora_adapter: 401: Unauthorized; mend trainer.rollouts.api_key_env"),
    ({"version": "other-step-3"}, "with weights other-step-3, not by vlmft-"),
    (
        {"takes_weights": False},
        "log-probabilities differ from the trainer's by ",
    ),
    ({"logprobs_mode": "raw_logprobs"}, "start the server with --logprobs-mode processed_logprobs"),
    (
        {"min_pixels": 200 * 200},
        "the server reads 91 tokens where 31 are trained on; they part at token 19. Where pictures differ",
    ),
    ({"dies_after": 1}, "step 1: {url}/inference/v1/generate: not reachable (RemoteProtocolError"),
    ({"hangs_s": 0.6}, "no answer within 0.3 s; raise trainer.rollouts.sync_timeout_s, or see its log"),
]


@pytest.mark.parametrize(
    ("started", "problem"), FAULTS, ids=lambda found: next(iter(found)) if isinstance(found, dict) else ""
)
def test_a_fault_ends_the_step_with_url_step_and_mend(
    rolls: Rolls, server: StandIn, asked: list[Encoded], started: dict[str, Any], problem: str
) -> None:
    made = rolls(trained(*ADAPTER), *ADAPTER, timeout_s=60.0, sync_timeout_s=0.3 if "hangs_s" in started else 60.0)
    vars(server).update(started)
    with pytest.raises(ServerError, match=literally(problem.format(url=server.url))) as caught:
        made(0, asked)
    assert server.url in str(caught.value) and str(caught.value).startswith("step 1: ")


def test_whole_checkpoints_need_the_development_endpoints(rolls: Rolls, server: StandIn, asked: list[Encoded]) -> None:
    server.dev = False
    with pytest.raises(
        ServerError, match=literally("/collective_rpc: 404: Not Found; start the server with VLLM_SERVER")
    ):
        rolls(trained())(0, asked)


def test_what_cannot_be_sent_is_named(rolls: Rolls, asked: list[Encoded]) -> None:
    made, weights = rolls(trained()), Weights("tiny", "v", "v")
    frames = np.stack([np.array(noise(56, 56, seed)) for seed in range(2)])
    film = tiny().encode_video(tiny_processor(), frames, Clip(56, 56, [0.0, 0.5]), PixelBudget())
    with pytest.raises(DataError, match="mine/one: holds a video, and the server takes frames without their times"):
        made.request(replace(asked[0], media=[film]), weights, 0)
    with pytest.raises(
        DataError, match="mine/two: has 2 pictures in 1 runs of vision tokens, and the server takes one"
    ):
        made.request(replace(asked[1], input_ids=asked[0].input_ids), weights, 0)


@pytest.mark.parametrize(("busy", "refused"), [(2, False), (100, True)])
def test_a_cache_of_old_weights_is_waited_for(
    rolls: Rolls, server: StandIn, asked: list[Encoded], monkeypatch: pytest.MonkeyPatch, busy: int, refused: bool
) -> None:
    monkeypatch.setattr("vlmft.training.vllm_server._PAUSE_S", 0.0)
    server.busy = busy
    made = rolls(trained())
    if not refused:
        made(0, asked[:1])
        return
    with pytest.raises(ServerError, match="/reset_prefix_cache: what the old weights have computed is still in use"):
        made(0, asked[:1])


@pytest.mark.slow
def test_a_model_learns_what_earns_more(rolls: Rolls, server: StandIn, asked: list[Encoded]) -> None:
    model = trained("recipe=fft")
    rewards = {"letters": Reward(weight=1.0, metric=Letters())}
    more = {"num_generations": 6}
    made = objective(model, roller=rolls(model, sampling=more), rollouts=rollouts(server), rewards=rewards, **more)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    earned = []
    for step in range(18):
        completions = made.begin(step, EncodedGroup(asked[:2]))
        earned.append(sum(one.reward for one in completions) / len(completions))
        gradients(made, [completions])
        optimiser.step()
    assert sum(earned[-3:]) / 3 > sum(earned[:3]) / 3 + 0.12, earned


def test_weights_that_arrive_late_are_noticed_by_their_completions(
    rolls: Rolls, server: StandIn, asked: list[Encoded]
) -> None:
    model = trained("recipe=fft")
    roller = rolls(model)
    made = objective(model, roller=roller, rollouts=rollouts(server))

    def stale(step: int, prompts: list[Encoded]) -> list[list[Rollout]]:
        found = roller(step, prompts)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter *= 1.5
        return found

    made.roller = stale
    with pytest.raises(ServerError, match="step 1: log-probabilities of completions by http.* nats a token, more than"):
        made.begin(0, EncodedGroup(asked))


@pytest.mark.parametrize("words", [ADAPTER, ("recipe=fft",)], ids=["adapter", "checkpoint"])
def test_no_weights_stay_behind(
    rolls: Rolls, server: StandIn, asked: list[Encoded], tmp_path: Path, words: tuple[str, ...]
) -> None:
    """One step's while the run goes on; none at its end, nor after a step that failed."""
    made = rolls(trained(*words), *words)
    for step in range(2):
        made(step, asked[:1])
        (folder,) = (tmp_path / "weights").iterdir()
        assert folder.name.endswith(f"-step-{step}")
    server.lora = server.dev = False
    with pytest.raises(ServerError, match="step 3: "):
        made(2, asked[:1])
    made.close()
    assert list((tmp_path / "weights").iterdir()) == []


def test_a_server_that_was_started_again_goes_on(rolls: Rolls, server: StandIn, asked: list[Encoded]) -> None:
    made = rolls(trained(*ADAPTER), *ADAPTER)
    first = ids(made(0, asked[:1]))
    server.adapters.clear()
    assert ids(made(1, asked[:1])) != first and len(server.adapters) == 1


def test_a_checkpoint_may_have_several_names(rolls: Rolls, server: StandIn, asked: list[Encoded]) -> None:
    plain = server.generate
    server.generate = lambda body: plain(body) | {"model": "its-first-name"}  # type: ignore[method-assign]
    assert len(rolls(trained())(0, asked[:1])) == 1
    with pytest.raises(ServerError, match="drawn by its-first-name with weights .*, not by vlmft-"):
        rolls(trained(*ADAPTER), *ADAPTER)(0, asked[:1])


def test_completions_of_other_ranks_are_made_anew(server: StandIn, asked: list[Encoded]) -> None:
    """Each rank's prompts have changed, and some ranks have none that wait."""
    model, more = trained("recipe=fft"), {"steps_per_generation": 2}
    made = objective(model, ahead=lambda step: EncodedGroup(asked[:1]), num_steps=4, **more)
    made.begin(0, EncodedGroup(asked[:1]))
    state = made.state()
    assert list(state["waiting"]) == [1]
    for ranks, waits in ((1, [1]), (2, [])):
        other = objective(model, ahead=lambda step: EncodedGroup(asked[:1]), num_steps=4, **more)
        other.restore(state | {"ranks": ranks})
        assert list(other.state()["waiting"]) == waits


def test_a_folder_that_cannot_be_written(rolls: Rolls, asked: list[Encoded], tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("in the way")
    with pytest.raises(StorageError, match="weights/.*-step-0: cannot be written: .*trainer.rollouts.weights_dir"):
        rolls(trained())(0, asked)


class TestLook:
    def test_a_server_that_is_not_there(self, server: StandIn) -> None:
        gone = rollouts(server, urls=("http://127.0.0.1:9",), wait_s=0.1)
        with pytest.raises(ConfigError, match="before training: http://127.0.0.1:9/health: not reachable") as caught:
            look_at(gone, 100)
        assert "docs/trainers.md has the command that starts it; waited 0.1 s" in str(caught.value)

    def test_another_model_and_too_short_a_context(self, server: StandIn) -> None:
        look_at(rollouts(server), 8192)
        with pytest.raises(
            ConfigError, match=literally("answers for tiny, not for 'mine'; mend trainer.rollouts.model")
        ):
            look_at(rollouts(server, model="mine"), 100)
        with pytest.raises(
            ConfigError, match="takes texts of 8192 tokens, and this run has up to 9000 .batching.max_tok"
        ):
            look_at(rollouts(server), 9000)

    def test_the_key_comes_from_the_environment(self, server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
        server.key = "secret"
        with pytest.raises(ConfigError, match="trainer.rollouts.api_key_env: the variable that it names is not set"):
            look_at(rollouts(server, api_key_env="VLMFT_TEST_KEY"), 100)
        monkeypatch.setenv("VLMFT_TEST_KEY", "secret")
        look_at(rollouts(server, api_key_env="VLMFT_TEST_KEY"), 100)
