"""Golden label masks: what is supervised is written out by hand, for templates that render as well-known ones do."""

import logging
import pickle
import re
from functools import cache
from pathlib import Path
from typing import get_args

import pytest
import trl
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from vlmft.encoding.answers import STEM
from vlmft.encoding.chat import ChatFormat, Rendered
from vlmft.errors import ConfigError, DataError
from vlmft.types import Image, Message, Role, Sample

FIXTURES = Path(__file__).parent / "fixtures"
TRL_TEMPLATES = Path(trl.__file__).parent / "chat_templates"
CORPUS = ["user assistant USER ASSISTANT What colour is the cat? It is black.\n\nA cat. Two dogs. yes no\n"] * 8
SPECIAL = {
    "chatml_vision": "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|image_pad|>",
    "llama3_text": "<|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|>",
    "gemma3": "<bos> <eos> <start_of_turn> <end_of_turn> <start_of_image>",
    "llava15": "<s> </s> <image>",
    "mistral": "<s> </s> <image>",
    "smolvlm": "<|im_start|> <end_of_utterance> <image>",
    "qwen3_thinking": "<|endoftext|> <|im_start|> <|im_end|>",
}
BOS = {"llama3_text": "<|begin_of_text|>", "gemma3": "<bos>", "llava15": "<s>", "mistral": "<s>"}
EOS = {
    "llama3_text": "<|eot_id|>",
    "gemma3": "<eos>",
    "llava15": "</s>",
    "mistral": "</s>",
    "smolvlm": "<end_of_utterance>",
}
PLAIN = "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
PICTURE = Image(Path("/media/cat.png"))


@cache
def byte_level(special: str, trim_offsets: bool = False) -> str:
    """A byte-level BPE with `special` tokens (separated by spaces), as the text of a tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    # Newlines stay together and words carry the space before them, as in Qwen's and Llama 3's vocabularies.
    words = pre_tokenizers.Split(Regex(r"\s*[\r\n]+| ?\S+|\s+"), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, level])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special.split()])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ("<think>", "</think>")])
    return tokenizer.to_str()


@cache
def metaspace(special: str) -> str:
    """A BPE whose words carry the space before them as "▁", as SentencePiece's do."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special.split()])
    return tokenizer.to_str()


def make_tokenizer(template: str | None, saved: str, **special: str | None) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(saved), chat_template=template, **special)


def make_format(name: str, trim_offsets: bool = False) -> ChatFormat:
    template = (FIXTURES / f"{name}.jinja").read_text()
    saved = byte_level(SPECIAL[name], trim_offsets)
    tokenizer = make_tokenizer(template, saved, bos_token=BOS.get(name), eos_token=EOS.get(name, "<|im_end|>"))
    return ChatFormat(tokenizer, tokenizer)


def questions_in_parts(written: str) -> ChatFormat:
    """ChatML that reads a question's content as a list of parts; `written` is what it makes of any other's."""
    template = (
        "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' }}"
        "{%- if m.role == 'user' %}"
        "{%- for p in m.content %}{{- p.text if p.type == 'text' else '<|image_pad|>' }}{%- endfor %}"
        "{%- else %}{{- WRITTEN }}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    ).replace("WRITTEN", written)
    tokenizer = make_tokenizer(template, byte_level(SPECIAL["chatml_vision"]), eos_token="<|im_end|>")
    return ChatFormat(tokenizer, tokenizer)


def conversation(*turns: object) -> Sample:
    """A sample whose turns alternate between user and assistant; a tuple holds parts, a Message stands as it is."""
    messages: list[Message] = []
    roles: list[Role] = ["user", "assistant"]
    for turn in turns:
        if isinstance(turn, Message):
            messages.append(turn)
            continue
        messages.append(Message(roles[0], turn if isinstance(turn, tuple) else (turn,)))
        roles.reverse()
    return Sample("pets/7", tuple(messages))


def system(text: str) -> Message:
    return Message("system", (text,))


def runs(tokenizer: PreTrainedTokenizerFast, ids: list[int], mask: list[bool]) -> list[str]:
    """The text of each run of supervised tokens."""
    found: list[list[int]] = []
    for index, (token, supervised) in enumerate(zip(ids, mask, strict=True)):
        if supervised:
            if index == 0 or not mask[index - 1]:
                found.append([])
            found[-1].append(token)
    return [tokenizer.decode(run) for run in found]


def supervised(chat: ChatFormat, sample: Sample) -> list[str]:
    tokens = chat.tokenize(chat.render(sample))
    return runs(chat.tokenizer, tokens.ids, tokens.supervised)


TWO_TURNS = conversation("What is it?", "A cat.", "And now?", "Two dogs.")
TWO_TURNS_SUPERVISED = {
    "chatml_vision": ["A cat.<|im_end|>", "Two dogs.<|im_end|>"],
    "llama3_text": ["A cat.<|eot_id|>", "Two dogs.<|eot_id|>"],
    "gemma3": ["A cat.<end_of_turn>", "Two dogs.<end_of_turn>"],
    # The space between "ASSISTANT:" (or "[/INST]"), where the prompt ends, and the answer is the model's to write.
    "llava15": [" A cat.</s>", " Two dogs.</s>"],
    "mistral": [" A cat.</s>", " Two dogs.</s>"],
    "smolvlm": [" A cat.<end_of_utterance>", " Two dogs.<end_of_utterance>"],
    "qwen3_thinking": ["A cat.<|im_end|>", "Two dogs.<|im_end|>"],
}
TWO_TURNS_TEXT = {
    "chatml_vision": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nWhat is it?<|im_end|>\n"
    "<|im_start|>assistant\nA cat.<|im_end|>\n<|im_start|>user\nAnd now?<|im_end|>\n"
    "<|im_start|>assistant\nTwo dogs.<|im_end|>\n",
    "llama3_text": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhat is it?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA cat.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nAnd now?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nTwo dogs.<|eot_id|>",
    "gemma3": "<bos><start_of_turn>user\nWhat is it?<end_of_turn>\n<start_of_turn>model\nA cat.<end_of_turn>\n"
    "<start_of_turn>user\nAnd now?<end_of_turn>\n<start_of_turn>model\nTwo dogs.<end_of_turn>\n",
    "llava15": "USER: What is it? ASSISTANT: A cat.</s> USER: And now? ASSISTANT: Two dogs.</s> ",
    "mistral": "<s>[INST] What is it? [/INST] A cat.</s>[INST] And now? [/INST] Two dogs.</s>",
    "smolvlm": "<|im_start|>User: What is it?<end_of_utterance>\nAssistant: A cat.<end_of_utterance>\n"
    "User: And now?<end_of_utterance>\nAssistant: Two dogs.<end_of_utterance>\n",
    "qwen3_thinking": "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\nA cat.<|im_end|>\n"
    "<|im_start|>user\nAnd now?<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\nTwo dogs.<|im_end|>\n",
}


class TestGolden:
    @pytest.mark.parametrize("name", SPECIAL)
    def test_two_turns(self, name: str) -> None:
        chat = make_format(name)
        rendered = chat.render(TWO_TURNS)
        assert rendered.text == TWO_TURNS_TEXT[name]
        assert [rendered.text[start:end] for start, end in rendered.spans] == TWO_TURNS_SUPERVISED[name]
        tokens = chat.tokenize(rendered)
        assert runs(chat.tokenizer, tokens.ids, tokens.supervised) == TWO_TURNS_SUPERVISED[name]

    @pytest.mark.parametrize("name", SPECIAL)
    @pytest.mark.parametrize("shift", [-1, 1])
    def test_a_mask_shifted_by_one_token_is_noticed(self, name: str, shift: int) -> None:
        chat = make_format(name)
        tokens = chat.tokenize(chat.render(TWO_TURNS))
        mask = tokens.supervised
        shifted = [False, *mask[:-1]] if shift == 1 else [*mask[1:], False]
        assert runs(chat.tokenizer, tokens.ids, shifted) != TWO_TURNS_SUPERVISED[name]

    @pytest.mark.parametrize("name", SPECIAL)
    def test_the_prompt_is_what_the_model_is_trained_to_continue(self, name: str) -> None:
        chat = make_format(name)
        rendered, prompt = chat.render(TWO_TURNS), chat.prompt(TWO_TURNS)
        assert prompt == rendered.text[: rendered.spans[-1][0]]
        assert chat.reference(TWO_TURNS) == "Two dogs."
        ids = chat.tokenize(rendered).ids
        prompt_ids = chat.tokenize_prompt(prompt)
        assert ids[: len(prompt_ids)] == prompt_ids

    def test_a_conversation_that_waits_for_an_answer_is_its_own_prompt(self) -> None:
        waiting = conversation("What is it?", "A cat.", "And now?")
        for name in SPECIAL:
            chat = make_format(name)
            # Qwen3 writes an empty thinking block before an answer that does not think; before none, it may think yet.
            block = "<think>\n\n</think>\n\n" if name == "qwen3_thinking" else ""
            assert chat.prompt(waiting) + block == chat.prompt(TWO_TURNS)

    def test_an_answer_that_thinks_is_asked_for_where_its_thinking_begins(self) -> None:
        chat = make_format("qwen3_thinking")
        thinking = conversation("What is it?", "<think>\nFur.\n</think>\n\nA cat.")
        assert chat.prompt(thinking) == "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"

    @pytest.mark.parametrize(
        ("name", "text", "expected"),
        [
            (
                "chatml_vision",
                "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                "<|im_start|>assistant\nyes<|im_end|>\n",
                "yes<|im_end|>",
            ),
            (
                "gemma3",
                "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nyes<end_of_turn>\n",
                "yes<end_of_turn>",
            ),
            ("llava15", "Be brief. USER: Hi ASSISTANT: yes</s> ", " yes</s>"),
        ],
    )
    def test_system(self, name: str, text: str, expected: str) -> None:
        chat = make_format(name)
        sample = conversation(system("Be brief."), "Hi", "yes")
        assert chat.render(sample).text == text
        assert supervised(chat, sample) == [expected]

    @pytest.mark.parametrize(
        ("name", "text", "expected"),
        [
            (
                "chatml_vision",
                "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\n"
                "<|vision_start|><|image_pad|><|vision_end|> and <|vision_start|><|image_pad|><|vision_end|>\nsame?"
                "<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n",
                ["Hello<|im_end|>", "no<|im_end|>"],
            ),
            (
                "llava15",
                "USER: Hi ASSISTANT: Hello</s> USER: <image>\n<image>\n and  \nsame? ASSISTANT: no</s> ",
                [" Hello</s>", " no</s>"],
            ),
            (
                "smolvlm",
                "<|im_start|>User: Hi<end_of_utterance>\nAssistant: Hello<end_of_utterance>\n"
                "User:<image> and <image>\nsame?<end_of_utterance>\nAssistant: no<end_of_utterance>\n",
                [" Hello<end_of_utterance>", " no<end_of_utterance>"],
            ),
        ],
    )
    def test_pictures_in_a_later_turn(self, name: str, text: str, expected: list[str]) -> None:
        chat = make_format(name)
        # The empty text in front must not hide the picture from a template that looks at the first part.
        sample = conversation("Hi", "Hello", ("", PICTURE, " and ", PICTURE, "\nsame?"), "no")
        assert chat.render(sample).text == text
        assert supervised(chat, sample) == expected
        placeholder = "<|image_pad|>" if name == "chatml_vision" else "<image>"
        ids = chat.tokenize(chat.render(sample)).ids
        assert ids.count(chat.tokenizer.convert_tokens_to_ids(placeholder)) == 2

    @pytest.mark.parametrize(
        ("name", "answer", "expected"),
        [
            ("chatml_vision", " yes", [" yes<|im_end|>"]),
            ("chatml_vision", "yes \n", ["yes \n<|im_end|>"]),
            ("chatml_vision", "\u3000yes\t", ["\u3000yes\t<|im_end|>"]),
            ("llama3_text", "\n yes \n", ["yes<|eot_id|>"]),
            ("gemma3", "  yes\n", ["yes<end_of_turn>"]),
            ("llava15", "yes \n", [" yes \n</s>"]),
            ("llava15", " yes", ["  yes</s>"]),
            ("mistral", "\nyes ", [" \nyes </s>"]),
            ("qwen3_thinking", "\n\n yes\n", [" yes\n<|im_end|>"]),
        ],
    )
    def test_whitespace_around_an_answer(self, name: str, answer: str, expected: list[str]) -> None:
        chat = make_format(name)
        assert supervised(chat, conversation("Hi", answer)) == expected

    def test_a_token_that_straddles_the_start_is_not_supervised(self) -> None:
        chat = make_format("chatml_vision")
        rendered = chat.render(conversation("Hi", "\nyes"))
        assert [rendered.text[start:end] for start, end in rendered.spans] == ["\nyes<|im_end|>"]
        # "\n\n" is one token: the template's newline and the answer's.
        assert "ĊĊ" in chat.tokenizer.convert_ids_to_tokens(chat.tokenize(rendered).ids)
        assert supervised(chat, conversation("Hi", "\nyes")) == ["yes<|im_end|>"]

    @pytest.mark.parametrize(
        "answer", ["🐈‍⬛ 👍🏽!", "黒い猫です。", "e\u0301te\u0301 caf\u00e9", "שלום", "&lt;b&gt; \"q\" 'q' \\n {{ x }}"]
    )
    def test_unicode_and_markup(self, answer: str) -> None:
        for name, end in (("chatml_vision", "<|im_end|>"), ("llama3_text", "<|eot_id|>"), ("gemma3", "<end_of_turn>")):
            chat = make_format(name)
            assert supervised(chat, conversation(answer, answer, answer, answer)) == [answer + end] * 2

    @pytest.mark.parametrize(
        ("name", "answers", "expected"),
        [
            ("chatml_vision", ("yes", "yes"), ["yes<|im_end|>", "yes<|im_end|>"]),
            ("chatml_vision", ("user\nyes\nassistant\nno", "\nassistant\n"), None),
            ("llava15", ("yes", "yes"), [" yes</s>", " yes</s>"]),
            (
                "llava15",
                ("no ASSISTANT: yes USER: yes ASSISTANT: yes", "yes ASSISTANT: yes"),
                [" no ASSISTANT: yes USER: yes ASSISTANT: yes</s>", " yes ASSISTANT: yes</s>"],
            ),
            ("smolvlm", ("\nAssistant: yes", "User: yes"), None),
        ],
    )
    def test_answers_that_look_like_each_other_or_like_the_template(
        self, name: str, answers: tuple[str, str], expected: list[str] | None
    ) -> None:
        chat = make_format(name)
        sample = conversation("yes", answers[0], "yes", answers[1])
        if expected is None:
            # The straddling newline is left to the test above: compare what is rendered.
            end, lead = ("<|im_end|>", "") if name == "chatml_vision" else ("<end_of_utterance>", " ")
            rendered = chat.render(sample)
            assert [rendered.text[a:b] for a, b in rendered.spans] == [lead + answer + end for answer in answers]
        else:
            assert supervised(chat, sample) == expected


class TestThinking:
    """Qwen3 keeps the thinking of answers after the last user turn, in its own layout, and removes all other."""

    @pytest.mark.parametrize(
        ("last", "expected"),
        [
            ("<think>\nTwo tails.\n</think>\n\nTwo dogs.", "<think>\nTwo tails.\n</think>\n\nTwo dogs.<|im_end|>"),
            ("<think>Two tails.</think>Two dogs.", "<think>\nTwo tails.\n</think>\n\nTwo dogs.<|im_end|>"),
            ("Two tails.</think>\nTwo dogs.\n", "<think>\nTwo tails.\n</think>\n\nTwo dogs.\n<|im_end|>"),
            ("<think>\n\n</think>\n\nTwo dogs.", "<think>\n\n</think>\n\nTwo dogs.<|im_end|>"),
            # The empty block that the template writes by itself is not supervised.
            ("Two dogs.", "Two dogs.<|im_end|>"),
        ],
    )
    def test_last_and_earlier_turns(self, last: str, expected: str) -> None:
        chat = make_format("qwen3_thinking")
        sample = conversation("What?", "<think>\nOne tail.\n</think>\n\nA cat.", "And now?", last)
        assert supervised(chat, sample) == ["A cat.<|im_end|>", expected]
        assert "One tail." not in chat.render(sample).text

    def test_a_template_that_knows_no_thinking_keeps_it(self) -> None:
        answer = " <think>\nOne tail.</think> A cat.\n"
        assert (
            supervised(make_format("chatml_vision"), conversation("What?", answer, "And?", answer))
            == [answer + "<|im_end|>"] * 2
        )

    @pytest.mark.parametrize(
        "answer",
        ["<think>a</think>b<think>c</think>d", "x<think>a</think>b", "<think>a</think>", "a</think>b</think>c"],
    )
    def test_tags_that_the_template_cannot_keep_are_refused(self, answer: str) -> None:
        with pytest.raises(DataError, match=r"sample pets/7: the .*expected .*'[^']*a</think>[^']*'"):
            make_format("qwen3_thinking").render(conversation("What?", answer))
        assert supervised(make_format("chatml_vision"), conversation("What?", answer)) == [answer + "<|im_end|>"]

    @pytest.mark.parametrize(
        ("template", "expected"),
        [
            ("qwen3", ["A cat.", "<think>\nTwo tails.\n</think>\n\nTwo dogs."]),
            ("qwen3_5_think", ["A cat.", "<think>\nTwo tails.\n</think>\n\nTwo dogs."]),
            ("qwen3_6", ["A cat.", "<think>\nTwo tails.\n</think>\n\nTwo dogs."]),
            ("lfm2_2_5_vl", ["A cat.", "<think>Two tails.</think>Two dogs."]),
            ("nemotron_3_ultra", ["A cat.", "<think>Two tails.</think>Two dogs."]),
            ("deepseek_r1_distill", ["A cat.", "Two dogs."]),
        ],
    )
    def test_published_templates(self, template: str, expected: list[str]) -> None:
        chat = oracle_format(template)
        end = "<｜end▁of▁sentence｜>" if template.startswith("deepseek") else "<|im_end|>"
        sample = conversation("What?", "<think>One tail.</think>A cat.", "And?", "<think>Two tails.</think>Two dogs.")
        assert supervised(chat, sample) == [answer + end for answer in expected]

    def test_thinking_lost_from_the_last_turn_is_told_once(self, caplog: pytest.LogCaptureFixture) -> None:
        chat = oracle_format("deepseek_r1_distill")
        with caplog.at_level(logging.WARNING, logger="vlmft.encoding.chat"):
            thinking = conversation("What?", "<think>One tail.</think>A cat.")
            oracle_format("qwen3").render(thinking)
            chat.render(TWO_TURNS)
            assert not caplog.records
            for _ in range(3):
                chat.render(thinking)
        assert [record.message for record in caplog.records] == [
            "The chat template removes the thinking (<think>...</think>) from every answer, so it is not trained. "
            "To train it, use a template that keeps it in the last turn."
        ]


ORACLE_SPECIAL = (
    "<s> <eos> </s> [INST] [/INST] <image> <|image_pad|> <|vision_start|> <|vision_end|> <|im_start|> <|im_end|> "
    "<start_of_turn> <end_of_turn> <start_of_image> <|turn> <turn|> <|begin_of_text|> <|start_header_id|> "
    "<|end_header_id|> <|eot_id|> <end_of_utterance> <|system|> <|user|> <|assistant|> <|end|> <sop> [gMASK] <|start|> "
    "<|message|> <|channel|> <|return|> <|eot|> <|eom|> <｜User｜> <｜Assistant｜> <｜end▁of▁sentence｜> "
    "<|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|SYSTEM_TOKEN|> "
    "<|START_RESPONSE|> <|END_RESPONSE|>"
)
EMPTY_THINKING = "<think>\n\n</think>\n\n"
# TRL marks what its templates' generation tags enclose. Before the answer that is sometimes the turn's header (which
# the prompt gives) or the empty thinking block; after the end token, a newline that nobody generates, since
# generation has stopped there. None of it is trained here. The values: how a turn ends, and what TRL's mask has
# before and after ours.
ORACLE = {
    "cohere": ("<|END_OF_TURN_TOKEN|>", "", ""),
    "cohere2": ("<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", "", ""),
    "deepseek_r1_distill": ("<｜end▁of▁sentence｜>", "<｜Assistant｜>", ""),
    "deepseekv3": ("<｜end▁of▁sentence｜>", "<｜Assistant｜>", ""),
    "diffusion_gemma": ("<turn|>", "", "\n"),
    "gemma": ("<end_of_turn>", "", "\n"),
    "gemma3": ("<end_of_turn>", "", "\n"),
    "glm4moe": ("<|user|>", "\n<think></think>\n", ""),
    "idefics3": ("<end_of_utterance>", "", "\n"),
    "lfm2": ("<|im_end|>", "", "\n"),
    "lfm2_v2": ("<|im_end|>", "", "\n"),
    "llama3": ("<|eot_id|>", "", ""),
    "llava_next": ("</s>", "", ""),
    "muse_glimmer": ("<|eot|>", "<|start|>assistant to=user<|message|>", ""),
    "nemotron_3_5_lightning": ("<|im_end|>", "<think></think>", "\n"),
    "nemotron_3_nano": ("<|im_end|>", "<think></think>", "\n"),
    "nemotron_3_super": ("<|im_end|>", "<think></think>", "\n"),
    "nemotron_3_ultra": ("<|im_end|>", "<think></think>", "\n"),
    "phi3": ("<|end|>", "", "\n"),
    "phi3_5": ("<|end|>", "", "\n"),
    "qwen2_5": ("<|im_end|>", "\n", "\n"),
    "qwen2_5_vl": ("<|im_end|>", "", "\n"),
    "qwen3": ("<|im_end|>", EMPTY_THINKING, "\n"),
    "qwen3_5_nothink": ("<|im_end|>", EMPTY_THINKING, "\n"),
    "qwen3_5_think": ("<|im_end|>", EMPTY_THINKING, "\n"),
    "qwen3_6": ("<|im_end|>", EMPTY_THINKING, "\n"),
    "qwen3_8": ("<|im_end|>", EMPTY_THINKING, "\n"),
    "qwen3_instruct_2507": ("<|im_end|>", "", "\n"),
    "qwen3_vl": ("<|im_end|>", "", "\n"),
    "smolvlm": ("<end_of_utterance>", "", "\n"),
}
SPACE_BEFORE_ANSWER = {"idefics3", "llava_next", "smolvlm"}
TEXT_ONLY = {"cohere", "cohere2", "deepseek_r1_distill", "deepseekv3", "gemma", "lfm2", "lfm2_v2", "llama3", "phi3"} | {
    *("phi3_5", "qwen2_5", "qwen3", "qwen3_instruct_2507"),
    *("nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra"),
}


def oracle_format(template: str) -> ChatFormat:
    text = (TRL_TEMPLATES / f"{template}.jinja").read_text()
    tokenizer = make_tokenizer(text, byte_level(ORACLE_SPECIAL), bos_token="<s>", eos_token="<eos>")
    return ChatFormat(tokenizer, tokenizer)


class TestOracle:
    def test_every_training_template_is_compared(self) -> None:
        stems = {path.stem.removesuffix("_training") for path in TRL_TEMPLATES.glob("*_training.jinja")}
        assert stems - {"gptoss"} == set(ORACLE)

    @pytest.mark.parametrize("template", ORACLE)
    def test_masks_agree_up_to_the_stated_difference(self, template: str) -> None:
        end, before, after = ORACLE[template]
        chat = oracle_format(f"{template}_training")
        tokens = chat.tokenize(chat.render(TWO_TURNS))
        contents = [m.text if template in TEXT_ONLY else [{"type": "text", "text": m.text}] for m in TWO_TURNS.messages]
        oracle = chat.tokenizer.apply_chat_template(
            [{"role": m.role, "content": c} for m, c in zip(TWO_TURNS.messages, contents, strict=True)],
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        assert tokens.ids == oracle["input_ids"]
        lead = " " if template in SPACE_BEFORE_ANSWER else ""
        ours = [lead + answer + end for answer in ("A cat.", "Two dogs.")]
        assert runs(chat.tokenizer, tokens.ids, tokens.supervised) == ours
        theirs = [before + text + after for text in ours]
        if template.startswith("phi3"):
            theirs[-1] += "<eos>"  # closes the text; generation has stopped at <|end|>
        assert runs(chat.tokenizer, oracle["input_ids"], [bool(m) for m in oracle["assistant_masks"]]) == theirs

    @pytest.mark.parametrize("template", ORACLE)
    def test_the_original_template_trains_the_same(self, template: str) -> None:
        # GLM's original ends no turn at all: EOS is written instead of the next turn's header.
        end = "<eos>" if template == "glm4moe" else ORACLE[template][0]
        lead = " " if template in SPACE_BEFORE_ANSWER else ""
        assert supervised(oracle_format(template), TWO_TURNS) == [lead + "A cat." + end, lead + "Two dogs." + end]

    def test_a_template_whose_turns_end_differently_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"ends the last answer with '<\|return\|>', but goes on with '<\|end\|>"):
            oracle_format("gptoss_training")


class TestTokenizers:
    """Masks do not depend on how a tokenizer reports its offsets."""

    @pytest.mark.parametrize("name", ["llama3_text", "llava15", "mistral", "smolvlm", "chatml_vision"])
    def test_trimmed_offsets(self, name: str) -> None:
        assert supervised(make_format(name, trim_offsets=True), TWO_TURNS) == TWO_TURNS_SUPERVISED[name]

    @pytest.mark.parametrize("trim_offsets", [False, True])
    def test_a_lone_space_of_the_template_is_not_the_answers(self, trim_offsets: bool) -> None:
        template = (
            (FIXTURES / "chatml_vision.jinja").read_text().replace("message.role + '\\n'", "message.role + '\\n> \\n '")
        )
        template = template.replace("assistant\\n'", "assistant\\n> \\n '")
        tokenizer = make_tokenizer(template, byte_level(SPECIAL["chatml_vision"], trim_offsets), eos_token="<|im_end|>")
        chat = ChatFormat(tokenizer, tokenizer)
        # " yes" is one token and counts from its space; "\t" merges with nothing, so here the space is a token alone
        # and counts as well; what stands before it never does.
        assert supervised(chat, conversation("Hi", "yes", "Hi", "\tyes")) == [" yes<|im_end|>", " \tyes<|im_end|>"]

    def test_sentencepiece_words_begin_at_their_space(self) -> None:
        template = (FIXTURES / "llava15.jinja").read_text()
        tokenizer = make_tokenizer(template, metaspace("<s> </s> <image>"), bos_token="<s>", eos_token="</s>")
        tokens = (chat := ChatFormat(tokenizer, tokenizer)).tokenize(chat.render(conversation("A cat?", "yes")))
        words = [t for t, s in zip(tokenizer.convert_ids_to_tokens(tokens.ids), tokens.supervised, strict=True) if s]
        assert "".join(words) == "▁yes</s>"

    def test_one_word_answers_are_trained_where_the_prompt_ends_in_a_space(self) -> None:
        template = (FIXTURES / "llava15.jinja").read_text().replace("'ASSISTANT:'", "'ASSISTANT: '")
        tokenizer = make_tokenizer(template, byte_level(SPECIAL["llava15"]), bos_token="<s>", eos_token="</s>")
        assert supervised(ChatFormat(tokenizer, tokenizer), conversation("A cat?", "yes")) == [" yes</s>"]

    @pytest.mark.parametrize("adds", ["<s> $A", "<s> $A </s>"])
    @pytest.mark.parametrize("written", [True, False])
    def test_bos_comes_once_whether_the_template_or_the_tokenizer_writes_it(self, written: bool, adds: str) -> None:
        template = (FIXTURES / "mistral.jinja").read_text()
        saved = Tokenizer.from_str(byte_level(SPECIAL["mistral"]))
        bos, eos = saved.token_to_id("<s>"), saved.token_to_id("</s>")
        assert bos is not None and eos is not None
        saved.post_processor = processors.TemplateProcessing(single=adds, special_tokens=[("<s>", bos), ("</s>", eos)])
        template = template if written else template.replace("{{- bos_token }}", "")
        tokenizer = make_tokenizer(template, saved.to_str(), bos_token="<s>", eos_token="</s>")
        chat = ChatFormat(tokenizer, tokenizer)
        tokens = chat.tokenize(chat.render(TWO_TURNS))
        assert tokens.ids.count(bos) == 1
        assert tokens.ids[0] == bos
        # An EOS that the tokenizer adds after the template's own is not supervised.
        assert runs(tokenizer, tokens.ids, tokens.supervised) == TWO_TURNS_SUPERVISED["mistral"]
        if adds == "<s> $A </s>":
            return
        prompt_ids = chat.tokenize_prompt(chat.prompt(TWO_TURNS))
        assert tokens.ids[: len(prompt_ids)] == prompt_ids

    def test_whitespace_after_the_generation_prompt_is_the_models(self) -> None:
        template = (FIXTURES / "chatml_vision.jinja").read_text().replace("assistant\\n'", "assistant'")
        tokenizer = make_tokenizer(template, byte_level(SPECIAL["chatml_vision"]), eos_token="<|im_end|>")
        chat = ChatFormat(tokenizer, tokenizer)
        assert chat.prompt(TWO_TURNS).endswith("<|im_start|>assistant")
        assert supervised(chat, TWO_TURNS) == ["\nA cat.<|im_end|>", "\nTwo dogs.<|im_end|>"]

    def test_an_end_token_without_the_special_flag(self) -> None:
        saved = Tokenizer.from_str(byte_level("<|im_start|>"))
        saved.add_tokens([AddedToken("<|im_end|>", special=False, normalized=False)])
        template = (FIXTURES / "chatml_vision.jinja").read_text()
        tokenizer = make_tokenizer(template, saved.to_str(), eos_token=None)
        chat = ChatFormat(tokenizer, tokenizer)
        assert supervised(chat, TWO_TURNS) == TWO_TURNS_SUPERVISED["chatml_vision"]
        with pytest.raises(DataError, match=r"the user's text contains '<\|im_end\|>'"):
            chat.render(conversation("a<|im_end|>b", "yes"))

    def test_each_role_is_given_the_content_that_the_template_reads(self) -> None:
        """A list of parts, which may hold pictures, from the user; strings where a list would be printed, or raise."""
        for written in ("m.content ~ ''", "'' + m.content"):
            chat = questions_in_parts(written)
            sample = conversation(system("Be brief."), ("Like ", PICTURE, "?"), "yes")
            assert chat.render(sample).text == (
                "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nLike <|image_pad|>?<|im_end|>\n"
                "<|im_start|>assistant\nyes<|im_end|>\n"
            )
            assert supervised(chat, sample) == ["yes<|im_end|>"]

    def test_a_system_prompt_alone_may_be_a_string(self) -> None:
        chat = questions_in_parts("'' + m.content if m.role == 'system' else m.content[0].text")
        assert chat.render(conversation(system("Be brief."), "Hi", "yes")).text == (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\nyes<|im_end|>\n"
        )

    def test_pickle(self) -> None:
        chat = make_format("llava15")
        copy = pickle.loads(pickle.dumps(chat))
        assert copy.tokenize(copy.render(TWO_TURNS)) == chat.tokenize(chat.render(TWO_TURNS))


class TestRefusals:
    @pytest.mark.parametrize("role", get_args(Role))
    @pytest.mark.parametrize(
        ("name", "token"),
        [
            ("chatml_vision", "<|im_end|>"),
            ("chatml_vision", "<|image_pad|>"),
            ("llava15", "<image>"),
            ("llava15", "</s>"),
        ],
    )
    def test_control_tokens_in_text(self, name: str, token: str, role: Role) -> None:
        texts: dict[Role, str] = {"system": "Be brief.", "user": "Hi", "assistant": "yes"}
        texts[role] = f"a{token}b"
        sample = Sample("pets/9", tuple(Message(r, (text,)) for r, text in texts.items()))
        expected = rf"sample pets/9: the {role}'s text contains '{token}'".replace("|", r"\|")
        chat = make_format(name)
        for call in (chat.render, chat.prompt):
            with pytest.raises(DataError, match=expected + ".*remove it"):
                call(sample)

    def test_a_control_token_split_over_two_parts(self) -> None:
        with pytest.raises(DataError, match=r"contains '<\|im_end\|>'"):
            make_format("chatml_vision").render(conversation(("<|im_", "end|>"), "yes"))

    def test_the_processors_placeholder_is_refused_even_if_it_is_no_special_token(self) -> None:
        tokenizer = make_format("chatml_vision").tokenizer

        class Processor:
            chat_template = tokenizer.chat_template
            image_token = "<picture>"
            apply_chat_template = staticmethod(tokenizer.apply_chat_template)

        with pytest.raises(DataError, match=r"the user's text contains '<picture>'"):
            ChatFormat(Processor(), tokenizer).render(conversation("a <picture>", "yes"))

    def test_added_tokens_that_are_not_special_are_allowed(self) -> None:
        assert supervised(make_format("chatml_vision"), conversation("<think>", "a <think> b")) == [
            "a <think> b<|im_end|>"
        ]

    def test_the_placeholder_itself(self) -> None:
        with pytest.raises(DataError, match=f"sample pets/7: the user's text contains '{STEM}', which is reserved"):
            make_format("gemma3").render(conversation(STEM, "yes"))

    def test_no_assistant_turn(self) -> None:
        sample = conversation("Hi")
        for call in (make_format("gemma3").render, make_format("gemma3").reference):
            with pytest.raises(DataError, match="sample pets/7: it has no assistant turn"):
                call(sample)

    def test_a_picture_in_an_answer(self) -> None:
        with pytest.raises(DataError, match="sample pets/7: an answer holds a picture"):
            make_format("chatml_vision").render(conversation("Hi", (PICTURE, "yes")))

    def test_a_picture_in_a_system_prompt_that_is_a_string(self) -> None:
        sample = conversation(Message("system", ("Look: ", PICTURE)), "Hi", "yes")
        with pytest.raises(DataError, match="sample pets/7: its system prompt holds a picture, .* move it to a user's"):
            questions_in_parts("m.content ~ ''").render(sample)

    def test_a_system_prompt_for_a_template_that_takes_none(self) -> None:
        with pytest.raises(DataError, match="sample pets/7: the chat template refuses the conversation: no system"):
            questions_in_parts("raise_exception('no system') if m.role == 'system' else m.content ~ ''").render(
                conversation(system("Be brief."), "Hi", "yes")
            )

    @pytest.mark.parametrize("name", ["llama3_text", "qwen3_thinking"])
    def test_a_picture_for_a_template_that_takes_text_only(self, name: str) -> None:
        with pytest.raises(
            DataError, match="sample pets/7: it has a picture, but the checkpoint's chat template takes"
        ):
            make_format(name).render(conversation((PICTURE, "Hi"), "yes"))

    def test_what_the_template_refuses(self) -> None:
        sample = Sample("pets/3", (*TWO_TURNS.messages, Message("assistant", ("again",))))
        with pytest.raises(
            DataError, match="sample pets/3: the chat template refuses the conversation: .*must alternate"
        ):
            make_format("gemma3").render(sample)

    @pytest.mark.parametrize(
        ("said", "problem"),
        [
            (
                "m.content | replace('cat', 'dog')",
                r"rewrote answer 1, .*expected 'A cat\.', the template wrote 'A dog\.",
            ),
            (
                "'' if 'dogs' in m.content else m.content",
                r"rewrote answer 2, .*expected 'Two dogs\.', the template wrote",
            ),
            ("m.content + ('!' if 'cat' in m.content else '')", "rewrote answer 1"),
            ("('Hm. ' if 'cat' in m.content else '') + m.content", "rewrote answer 1"),
            ("m.content if 'dogs' in m.content else m.content | replace('.', '')", "rewrote answer 1"),
        ],
    )
    def test_a_template_that_rewrites_answers(self, said: str, problem: str) -> None:
        with pytest.raises(DataError, match=f"sample pets/7: the chat template {problem}"):
            self.template_that_says(said).render(TWO_TURNS)

    def test_the_message_shows_where_a_long_answer_was_rewritten(self) -> None:
        chat = self.template_that_says("m.content | replace('cat', 'dog')")
        with pytest.raises(DataError, match=r"expected 'x{40}cat', the template wrote 'x{40}dog<\|im_end\|>"):
            chat.render(conversation("Hi", "x" * 1000 + "cat"))

    @pytest.mark.parametrize("said", ["m.content[:5]", "m.content + m.content", "''"])
    def test_a_template_that_cuts_or_repeats_every_answer(self, said: str) -> None:
        with pytest.raises(ConfigError, match="does not write the text of every message once"):
            self.template_that_says(said)

    def template_that_says(self, said: str) -> ChatFormat:
        template = (
            "{%- for m in messages %}{%- set said = (SAID) if m.role == 'assistant' else m.content %}"
            "{{- '<|im_start|>' + m.role + '\n' + said + '<|im_end|>\n' }}{% endfor %}"
        ).replace("SAID", said)
        tokenizer = make_tokenizer(template, byte_level(SPECIAL["qwen3_thinking"]), eos_token="<|im_end|>")
        return ChatFormat(tokenizer, tokenizer)

    @pytest.mark.parametrize(
        ("template", "problem"),
        [
            (
                "{{- '<|im_start|>cats\n' if messages[1] and 'cat' in messages[1].content else '' }}" + PLAIN,
                "the text that the chat template writes around the answers depends on them: expected '<|im_start|>user",
            ),
            (
                PLAIN + "{{- 'Bye.' if 'dogs' in messages[-1].content else '' }}",
                "the text that the chat template writes around the answers depends on them: expected '', found 'Bye.'",
            ),
            (
                PLAIN.replace("'<|im_end|>", "('<|im_end|>' if 'What is it?' != messages[0].content else '') + '"),
                "the chat template ends answer 1 with '\\n<|im_start|>user",
            ),
            ("{%- set messages = messages[-4:] %}" + PLAIN, "the chat template drops, repeats or reorders answers"),
        ],
    )
    def test_a_template_that_branches(self, template: str, problem: str) -> None:
        tokenizer = make_tokenizer(template, byte_level(SPECIAL["qwen3_thinking"]), eos_token="<|im_end|>")
        chat = ChatFormat(tokenizer, tokenizer)
        chat.render(conversation("Hi", "yes"))
        sample = conversation(*(m.text for m in TWO_TURNS.messages), *(["x", "y"] if "-4:" in template else []))
        with pytest.raises(DataError, match=re.escape(f"sample pets/7: {problem}")):
            chat.render(sample)

    def test_a_template_that_moves_the_thinking(self) -> None:
        moved = "m.content.split('</think>')[-1] + ' ' + m.content.split('</think>')[0]"
        chat = self.template_that_says(f"{moved} if '</think>' in m.content else m.content")
        with pytest.raises(DataError, match="sample pets/7: the chat template drops, repeats or reorders answers"):
            chat.render(conversation("Hi", "<think>a</think>b"))

    def test_nothing_to_supervise(self) -> None:
        with pytest.raises(DataError, match="sample pets/1: no token is supervised"):
            make_format("gemma3").tokenize(Rendered("pets/1", "some text", ()))


class TestUnusableCheckpoints:
    def refused(self, template: str | None, problem: str, eos: str | None = "<|im_end|>") -> None:
        tokenizer = make_tokenizer(template, byte_level(SPECIAL["qwen3_thinking"]), eos_token=eos)
        with pytest.raises(ConfigError, match=problem):
            ChatFormat(tokenizer, tokenizer)

    def test_no_template(self) -> None:
        self.refused(None, "has no chat template: take an instruction-tuned checkpoint")

    def test_a_template_that_fails(self) -> None:
        self.refused("{{- raise_exception('not today') }}", "cannot write a conversation of two turns: not today")

    def test_a_template_that_writes_no_prompt(self) -> None:
        template = "{% for m in messages %}{{ m.content + '<|im_end|>' + messages[1].role }}{% endfor %}"
        self.refused(template, "cannot write a prompt: ")

    def test_a_template_that_writes_nothing(self) -> None:
        self.refused("hello", "cannot write a conversation of two turns: it does not write the text")

    def test_no_end_and_no_eos(self) -> None:
        template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
        self.refused(template, "ends no answer and the tokenizer has no EOS token", eos=None)

    def test_an_end_that_is_no_token(self) -> None:
        template = "{% for m in messages %}{{ m.role + ': ' + m.content + '<end>\n' }}{% endfor %}"
        self.refused(template, "ends an answer with '<end>', which is no token of the tokenizer")

    def test_the_last_end_missing(self) -> None:
        template = (
            "{% for m in messages %}{{ m.role + ': ' + m.content + ('' if loop.last else '<|im_end|>') }}{% endfor %}"
        )
        self.refused(template, r"ends every answer but the last with '<\|im_end\|>'")

    def test_only_the_last_end_written(self) -> None:
        template = (
            "{% for m in messages %}{{ m.role + ': ' + m.content + ('<|im_end|>' if loop.last else '') }}{% endfor %}"
        )
        self.refused(template, r"ends the last answer with '<\|im_end\|>', but goes on with 'user: ")

    def test_a_tokenizer_without_offsets(self) -> None:
        class Slow:
            is_fast = False

        renderer = make_format("chatml_vision").tokenizer
        with pytest.raises(ConfigError, match="Slow gives no character offsets"):
            ChatFormat(renderer, Slow())
