import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.trainer_callback import CallbackHandler, DefaultFlowCallback

from vlmft.errors import ConfigError, PreemptedError
from vlmft.training.specs import Logger
from vlmft.training.trackers import MLFLOW_QUEUE, guarded, one_line, tracker_callbacks

EVENTS = [name for name in dir(TrainerCallback) if name.startswith("on_")]
NEEDS = {"on_log": {"logs": {"loss": 1.0}}, "on_evaluate": {"metrics": {}}, "on_predict": {"metrics": {}}}


class Tracker(TrainerCallback):
    """Writes down what it is told; `raises` at the events that are named."""

    def __init__(self, **raises: BaseException) -> None:
        self.raises = raises
        self.told: list[str] = []
        self.args: list[Any] = []


def _event(name: str) -> Callable[..., None]:
    def method(self: Tracker, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.told.append(name)
        self.args.append((args, state, control, kwargs))
        if name in self.raises:
            raise self.raises[name]

    return method


for name in EVENTS:
    setattr(Tracker, name, _event(name))


@pytest.fixture(autouse=True)
def leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """What making trackers changes in the process is as before, whether the variable was set or not."""
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setenv("WANDB_DIR", "")
    monkeypatch.delenv("WANDB_DIR")


def fire(event: str, *callbacks: TrainerCallback) -> TrainerControl:
    """One event, as Trainer has it come to its callbacks."""
    handler = CallbackHandler([DefaultFlowCallback, *callbacks], "the model", None, None, None)
    control: TrainerControl = getattr(handler, event)(
        SimpleNamespace(), TrainerState(max_steps=5), TrainerControl(), **NEEDS.get(event, {})
    )
    return control


@pytest.mark.parametrize("event", [event for event in EVENTS if event not in ("on_step_end", "on_epoch_end")])
def test_every_event_comes_through_as_it_is(event: str) -> None:
    tracker = Tracker()
    guard = guarded("mine", tracker)
    control = fire(event, guard)
    guard.close()
    assert tracker.told == [event]
    ((_, state, got, kwargs),) = tracker.args
    assert state.max_steps == 5 and got is control and kwargs["model"] == "the model"
    assert NEEDS.get(event, {}).items() <= kwargs.items()


def test_the_end_comes_after_the_scores() -> None:
    tracker = Tracker()
    guard = guarded("mine", tracker)
    guard.close()
    fire("on_train_begin", guard)
    fire("on_train_end", guard)
    fire("on_log", guard)
    assert tracker.told == ["on_train_begin", "on_log"]
    guard.close()
    assert tracker.told == ["on_train_begin", "on_log", "on_train_end"]


@pytest.mark.parametrize("event", ["on_init_end", "on_train_begin", "on_log", "on_train_end"])
def test_a_tracker_that_fails_is_left_out_with_one_warning(event: str, caplog: pytest.LogCaptureFixture) -> None:
    broken, sound = Tracker(**{event: OSError(28, "No space left on device")}), Tracker()
    guards = [guarded("broken", broken), guarded("sound", sound)]
    for each in ("on_init_end", "on_train_begin", "on_log", "on_log", "on_train_end", "on_log"):
        fire(each, *guards)
    for guard in guards:
        guard.close()
    assert [record.getMessage() for record in caplog.records] == [
        "broken failed and gets nothing more of this run: OSError: [Errno 28] No space left on device. "
        "Training goes on; metrics.jsonl has every figure"
    ]
    assert (caplog.records[0].name, caplog.records[0].levelname) == ("vlmft.training.trackers", "WARNING")
    assert broken.told.count(event) == 1 and broken.told[-1] == event
    assert sound.told == ["on_init_end", "on_train_begin", "on_log", "on_log", "on_log", "on_train_end"]


@pytest.mark.parametrize("error", [PreemptedError("SIGTERM received"), KeyboardInterrupt(), SystemExit(3)])
def test_an_order_to_stop_passes(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    guard = guarded("mine", Tracker(on_log=error))
    with pytest.raises(type(error)) as caught:
        fire("on_log", guard)
    assert caught.value is error and not guard.failed and not caplog.records


@pytest.mark.parametrize("explicit", [True, False])
def test_an_order_to_stop_that_the_client_wraps_passes(explicit: bool) -> None:
    stop = PreemptedError("SIGTERM received")

    class Wraps(TrainerCallback):
        def on_log(self, *args: Any, **kwargs: Any) -> None:
            try:
                raise stop
            except Exception as error:
                raise RuntimeError("could not log") from (error if explicit else None)

    with pytest.raises(PreemptedError) as caught:
        fire("on_log", guarded("mine", Wraps()))
    assert caught.value is stop


def test_what_a_client_only_logs_counts_once(caplog: pytest.LogCaptureFixture) -> None:
    """mlflow sends from threads, raises nothing, and would print an error, with its server's password, each step."""
    tracker = Tracker()
    guard = guarded("mlflow", tracker)
    queue = logging.getLogger(MLFLOW_QUEUE)
    queue.addFilter(guard.heard)
    try:
        queue.warning("slow")
        for _ in range(3):
            queue.error("Failed to log run data: Exception: API request to %s failed", "http://me:pass@host:9/api")
    finally:
        queue.removeFilter(guard.heard)
    assert [record.getMessage() for record in caplog.records] == [
        "slow",
        "mlflow failed and gets nothing more of this run: Failed to log run data: Exception: API request to "
        "http://***@host:9/api failed. Training goes on; metrics.jsonl has every figure",
    ]
    fire("on_log", guard)
    assert tracker.told == []


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("\n  refused \nConsider a longer timeout", "refused"),
        ("", ""),
        ("Post https://me:p@ss@host/x/graphql: refused.", "Post https://***@host/x/graphql: refused"),
        ("url: /api?api_key=abc&run=1 (Caused by 'x')", "url: /api?*** (Caused by 'x')"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("{'api_key': 'abc'} is no key", "{'api_key*** is no key"),
        ("token=abc refused", "token*** refused"),
        ("401 for canary-in-the-environment", "401 for ***"),
        ("x" * 501, "x" * 500 + " ..."),
    ],
)
def test_a_reason_is_one_line_without_credentials(said: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "canary-in-the-environment")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "refused")  # seven characters: too short to be taken for a secret
    assert one_line(said) == shown


def test_an_error_without_words_is_named(caplog: pytest.LogCaptureFixture) -> None:
    fire("on_log", guarded("mine", Tracker(on_log=TimeoutError())))
    assert "of this run: TimeoutError. Training" in caplog.records[0].getMessage()


def test_several_trackers_are_no_reason_to_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Trainer warns where two callbacks are of one class."""
    guards = tracker_callbacks(Logger(report_to=("tensorboard", "wandb")), tmp_path, tmp_path / "tb")
    handler = CallbackHandler([DefaultFlowCallback, *guards], None, None, None, None)
    assert handler.callback_list.split() == [
        "DefaultFlowCallback",
        "GuardedTensorBoardCallback",
        "GuardedWandbCallback",
    ]
    assert not caplog.records


def test_trackers_write_into_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracker_callbacks(Logger(report_to=()), tmp_path, tmp_path / "tb") == []
    both = Logger(report_to=("tensorboard", "wandb"))
    board, _ = tracker_callbacks(both, tmp_path, tmp_path / "tb")
    assert type(board.tracker).__name__ == "TensorBoardCallback"
    assert board.tracker.logging_dir == str(tmp_path / "tb")
    assert os.environ["WANDB_DIR"] == str(tmp_path)
    monkeypatch.setenv("WANDB_DIR", "/the/users")
    tracker_callbacks(both, tmp_path, tmp_path / "tb")
    assert os.environ["WANDB_DIR"] == "/the/users"


def test_every_tracker_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    with pytest.raises(ConfigError) as caught:
        tracker_callbacks(Logger(report_to=("wandb", "tensorbord", "tensorboard")), tmp_path, tmp_path)
    missing, misspelt = caught.value.problems
    assert missing.startswith("logger.report_to: wandb: ") and "pip install wandb" in missing
    assert misspelt.startswith("logger.report_to: tensorbord: tensorbord is not supported") and "wandb" in misspelt


def test_tensorboard_gets_steps_and_scores_in_one_closed_file(bench: Callable[..., Any], tmp_path: Path) -> None:
    (guard,) = tracker_callbacks(Logger(report_to=("tensorboard",)), tmp_path, tmp_path / "tb")
    trainer = bench("trainer.max_steps=3", "global_batch_size=2", "trainer.num_workers=0").trainer
    trainer.add_callback(guard)
    trainer.train()
    trainer.report({"eval/exact_match": 0.5})
    assert guard.tracker.tb_writer is not None
    guard.close()
    assert guard.tracker.tb_writer is None and not guard.failed
    (file,) = (tmp_path / "tb").iterdir()
    read = EventAccumulator(str(file)).Reload()
    assert [point.step for point in read.Scalars("train/loss")] == [1, 2, 3]
    assert [point.value for point in read.Scalars("train/eval/exact_match")] == [0.5]


def test_what_trackers_upload_holds_no_secret(bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' callbacks upload the arguments and the model's config: neither knows a token, nor the data."""
    monkeypatch.setenv("HF_TOKEN", "hf_canary-77d2e9-token")
    monkeypatch.setenv("CANARY", "canary-5b1f0c-referenced")
    made = bench("trainer.max_steps=1", "dataset.shapes.system_prompt=${oc.env:CANARY}")
    uploaded = f"{made.trainer.args.to_dict()} {made.trainer.args.to_json_string()} {made.model.config.to_dict()}"
    assert "'output_dir'" in uploaded and "'vision_config'" in uploaded
    assert "canary" not in uploaded
    made.trainer.args.hub_token = "hf_canary-77d2e9-token"  # as a later vlmft may
    assert "canary" not in f"{made.trainer.args.to_dict()} {made.trainer.args.to_json_string()}"
