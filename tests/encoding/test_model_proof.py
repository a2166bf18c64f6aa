"""A model that training or evaluation could not rely on is refused, by the name of what it does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.encoding.test_proof import tampered
from tests.models.autos import NAMES, parts
from tests.support import CPU, literally
from vlmft.encoding.model_proof import prove_model
from vlmft.encoding.proof import prove_encoding
from vlmft.errors import ConfigError
from vlmft.models import Auto
from vlmft.models.anatomy import dissect


def model_of() -> Any:
    return NAMES["llava15"].spec.load_model(CPU)


def _llm(model: Any) -> Any:
    return model.model.language_model


def _leaks_over_padding(model: Any) -> None:
    def mixed(module: Any, args: Any, output: Any) -> None:
        output.last_hidden_state += 0.1 * output.last_hidden_state.mean(dim=1, keepdim=True)

    _llm(model).register_forward_hook(mixed)


def _sees_padding_on_the_left(model: Any) -> None:
    def without(module: Any, args: Any, options: Any) -> Any:
        return args, options | {"attention_mask": None}

    _llm(model).register_forward_pre_hook(without, with_kwargs=True)


def _sees_answers_while_training(model: Any) -> None:
    def mixed(module: Any, args: Any, output: Any) -> None:
        if module.training:
            output.last_hidden_state += 0.1 * output.last_hidden_state.mean(dim=1, keepdim=True)

    _llm(model).register_forward_hook(mixed)


def _mixes_samples_while_training(model: Any) -> None:
    def mixed(module: Any, args: Any, output: Any) -> None:
        if module.training:
            output.last_hidden_state += 0.1 * output.last_hidden_state.mean(dim=0, keepdim=True)

    _llm(model).register_forward_hook(mixed)


def _is_blind(model: Any) -> None:
    for parameter in model.model.multi_modal_projector.parameters():
        parameter.data.zero_()


def _loses_its_cache(model: Any) -> None:
    def shifted(module: Any, args: Any, options: Any) -> Any:
        if options["past_key_values"] is not None and options["past_key_values"].get_seq_length():
            options = options | {"inputs_embeds": 0.5 * options["inputs_embeds"].flip(-1)}
        return args, options

    _llm(model).register_forward_pre_hook(shifted, with_kwargs=True)


def _gives_all_logits(model: Any) -> None:
    own = model.forward
    model.forward = lambda *args, logits_to_keep, **options: own(*args, **options)


def _gives_nan(model: Any) -> None:
    model.lm_head.weight.data[0, 0] = float("nan")


def _raises_in_generation(model: Any) -> None:
    def generate(**options: Any) -> Any:
        raise TypeError("no generate here")

    model.generate = generate


ALONE = r"of sample noise/\w+ in a batch and by itself, are not the same: they differ by 0\.\d+ of their"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_leaks_over_padding, rf"the logits {ALONE} size, and rounding accounts for 0\.001"),
        (
            _sees_padding_on_the_left,
            r"the logits of sample noise/\w+, generated in a batch and by itself, are not the same: they differ by 0\.",
        ),
        (
            _loses_its_cache,
            r"the logits of sample noise/picture, generated with and without its cache, are not the same: they differ",
        ),
        (
            _sees_answers_while_training,
            r"the logits of sample noise/picture before its answer's last token, and with another there, are not the",
        ),
        (
            _mixes_samples_while_training,
            r"the logits of sample noise/picture beside another in training, and beside itself, are not the same: they",
        ),
        (
            _is_blind,
            r"no picture reaches its logits: they change by 0 with another picture, and by 0 with the same one",
        ),
        (_gives_all_logits, r"asked for the logits of 1 x \d+ tokens, it gives \[1, \d+, \d+\]"),
        (_gives_nan, r"its logits of sample noise/picture are not all finite"),
        (
            _raises_in_generation,
            r"it fails to generate for noise/picture, .*: TypeError: no generate here",
        ),
    ],
)
def test_a_model_that_training_cannot_rely_on_is_refused(spoil: Callable[[Any], None], message: str) -> None:
    spec, encoder, collator = parts("llava15")
    model = model_of()
    spoil(model)
    with pytest.raises(ConfigError, match=f"^model=auto: LlavaForConditionalGeneration: {message}"):
        prove_model(model, encoder, collator, [], spec.refused, 1e-3, 8192)


def test_a_component_that_takes_no_part_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, encoder, collator = parts("llava15")
    model = model_of()
    model.model.idle = torch.nn.Linear(2, 2)
    monkeypatch.setattr(Auto, "anatomy", dissect(model))
    assert spec.component_paths["projector"] == ("model.multi_modal_projector", "model.idle")
    message = "model.idle, found to be of the projector, takes no part when a picture is answered"
    with pytest.raises(ConfigError, match=literally(message)):
        prove_model(model, encoder, collator, [], spec.refused, 1e-3, 8192)


def _text_more(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    return call(*args, **options) + "<image>"


def test_a_token_more_than_features_is_refused_by_the_model() -> None:
    """The processor is followed to the letter; that it does not fit its model, the model says."""
    spec, encoder, collator = parts("llava15", tampered(replace_image_token=_text_more))
    prove_encoding(encoder, collator, [], spec.refused)
    message = (
        "model=auto: LlavaForConditionalGeneration: it fails on sample noise/picture: ValueError: Image features and "
        "image tokens do not match"
    )
    with pytest.raises(ConfigError, match=literally(message)):
        prove_model(model_of(), encoder, collator, [], spec.refused, 1e-3, 8192)
