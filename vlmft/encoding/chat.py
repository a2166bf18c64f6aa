"""A conversation as the checkpoint's own chat template writes it, and which of its tokens are trained."""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from vlmft.encoding.answers import ANSWER, QUESTION, STEM, Located, Span, locate_answers
from vlmft.errors import ConfigError, DataError, VlmftError
from vlmft.types import Image, Message, Part, Role, Sample, Video

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = getLogger(__name__)

# What a list of parts looks like where a template prints it instead of reading it (`content | trim`, `tojson`).
_PRINTED_LIST = re.compile(rf"""['"]text['"]: ?['"]{STEM}""")

# Whose content is tried as a list of parts, until the template writes it.
_IN_PARTS: tuple[frozenset[Role], ...] = (frozenset(("user", "assistant")), frozenset(("user",)), frozenset())
_SYSTEM: frozenset[Role] = frozenset(("system",))


class Renderer(Protocol):
    """What writes a conversation as text: a processor or a tokenizer that has a chat template."""

    def apply_chat_template(self, conversation: list[dict[str, Any]], /, **options: Any) -> Any:
        """Return the text of `conversation`, given `tokenize=False` and `add_generation_prompt`."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of the sample `id`. `spans` holds the character range [start, end) of each answer with its end."""

    id: str
    text: str
    spans: tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids and, for each, whether the loss counts it. A picture's placeholder is still a single token."""

    ids: list[int]
    supervised: list[bool]


class ChatFormat:
    """How one checkpoint writes a conversation; holds no weights and may be pickled.

    Supervised are the content of every assistant turn and the tokens that end it, nothing else. Where a template
    ends no turn (LLaVA-1.5), the tokenizer's EOS is written after each answer and supervised. A thinking block
    that a template writes before an answer that has none is the template's, and is not supervised.

    Raises:
        ConfigError: there is no chat template, it cannot be used, or the tokenizer is not a fast one.
    """

    num_probed: ClassVar[Literal[1, 2]] = 2
    """Turns (a question with its answer) of the conversation by which the template is got to know."""

    def __init__(self, renderer: Renderer, tokenizer: "PreTrainedTokenizerFast") -> None:
        if not getattr(renderer, "chat_template", True):
            raise ConfigError(
                f"{type(renderer).__name__} has no chat template: take an instruction-tuned checkpoint, or put a "
                "chat_template.jinja into the checkpoint's folder"
            )
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(
                f"{type(tokenizer).__name__} gives no character offsets, which the label mask needs: take a checkpoint "
                "with a tokenizer.json (a fast tokenizer)"
            )
        self.renderer, self.tokenizer = renderer, tokenizer
        self._warned = False
        self._in_parts, probe = self._probe()
        before, *rest = re.split(rf"{STEM}A\dx", probe)
        between, after = rest[0], rest[-1]
        ends = self._end_tokens(between, after)
        self._end = "".join(ends)
        self._eos = "" if ends else self._eos_to_write(between)
        self._lead = self._lead_of(before)
        self._control = _any_of(self._control_tokens() | {end.strip() for end in ends})

    def render(self, sample: Sample) -> Rendered:
        """Write the whole conversation and find its supervised spans.

        Raises:
            DataError: the template refuses the conversation or rewrites an answer; a text holds a control token;
                there is no assistant turn, or one with a picture.
        """
        _last_answer(sample)
        located = self._locate(sample, sample.messages, generation=False)
        if located.lost_thinking and not self._warned:
            # Stripping it from earlier turns is what templates are meant to do; from the last it is worth a word.
            self._warned = True
            logger.warning(
                "The chat template removes the thinking (<think>...</think>) from every answer, so it is not trained. "
                "To train it, use a template that keeps it in the last turn."
            )
        return Rendered(sample.id, *self._finish(sample.id, located))

    def prompt(self, sample: Sample) -> str:
        """The conversation up to its last turn if that is an answer, as it stands before that answer in training.

        That is the template's generation prompt, and what it writes before an answer that does not think: Qwen3.5's
        generation prompt opens a block of thinking, which training closes again before such an answer. A last answer
        that thinks begins with its thinking, and one that is not there may: their prompt is the template's own.

        Raises:
            DataError: as `render`.
        """
        *before, last = sample.messages
        if last.role == "assistant" and "</think>" not in last.text:
            rendered = self.render(sample)
            return rendered.text[: rendered.spans[-1][0]]
        asked = before if last.role == "assistant" else sample.messages
        return self._finish(sample.id, self._locate(sample, asked, generation=True))[0]

    def asked_by(self) -> str | None:
        """What a prompt has to be told, or to end in, for the model to answer as it is trained to; None: nothing.

        Templates that think open a block of thinking in a prompt, which training closes before an answer without one.
        """
        turns: list[tuple[Role, str]] = [("user", QUESTION.format(0)), ("assistant", ANSWER.format(0))]
        question, answered = (
            self._apply([_turn(*turn, self._in_parts) for turn in part]) for part in (turns[:1], turns)
        )
        trained = answered[: answered.index(ANSWER.format(0))]
        asked = [_turn(*turns[0], self._in_parts)]
        if trained == self._apply(asked, generation=True) + self._lead:
            return None
        if trained == self._apply(asked, generation=True, enable_thinking=False):
            return "enable_thinking=False"
        return repr(trained.removeprefix(question))

    def reference(self, sample: Sample) -> str:
        """The last answer, as its author wrote it."""
        return sample.messages[_last_answer(sample)].text

    def tokenize(self, rendered: Rendered) -> Tokens:
        """Tokenise the text once and carry the spans over to its tokens.

        A token is supervised if it starts inside a span. One that starts before the answer and reaches into it
        (the template's newline merged with the answer's own into "\\n\\n") is not: the prompt has said its
        beginning already, and the model is never asked for such a token when it answers.

        Raises:
            DataError: no token is supervised.
        """
        encoding = self._encode(rendered.text, return_offsets_mapping=True)
        ids: list[int] = encoding["input_ids"]
        starts = _token_starts(encoding["offset_mapping"])
        supervised = [False] * len(ids)
        for start, end in rendered.spans:
            first, last = bisect_left(starts, start), bisect_left(starts, end)
            supervised[first:last] = [True] * (last - first)
        if not any(supervised):
            raise DataError(f"sample {rendered.id}: no token is supervised; every sample needs an answer to learn from")
        return Tokens(ids, supervised)

    def tokenize_prompt(self, text: str) -> list[int]:
        """Token ids of a text without answers."""
        ids: list[int] = self._encode(text)["input_ids"]
        return ids

    def _encode(self, text: str, **options: Any) -> Any:
        # The rule of transformers' ProcessorMixin.apply_chat_template: the tokenizer adds its special tokens unless
        # the template has already written BOS.
        bos = self.tokenizer.bos_token
        options |= {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
        return self.tokenizer(text, add_special_tokens=not (bos and text.startswith(bos)), **options)

    def _probe(self) -> tuple[frozenset[Role], str]:
        """Whose content the template reads as a list of parts, and a conversation of `num_probed` turns by it.

        Templates of pure LLM tokenizers take strings. Given a list, some raise, some print it, and Qwen3's writes
        nothing at all, so what counts is the text that comes out. GLM-4.1V's reads the list of a question, which may
        hold pictures, and prints that of an answer or a system prompt.
        """
        marks = [kind.format(i) for i in range(self.num_probed) for kind in (QUESTION, ANSWER)]
        turns: list[tuple[Role, str]] = list(zip(("user", "assistant") * self.num_probed, marks, strict=True))
        for in_parts in _IN_PARTS:
            text, complaint = self._tried(turns, in_parts)
            if text is not None:
                # A template that takes no system prompt at all says so of the sample that has one.
                system_too = in_parts | _SYSTEM if in_parts else in_parts
                told = [("system", QUESTION.format(2)), *turns]
                reads_strings = not self._tried(told, system_too)[0] and self._tried(told, in_parts)[0]
                return in_parts if reads_strings else system_too, text
        number = "one turn" if self.num_probed == 1 else "two turns"
        raise ConfigError(f"the checkpoint's chat template cannot write a conversation of {number}: {complaint}")

    def _tried(self, turns: Sequence[tuple[Role, str]], in_parts: frozenset[Role]) -> tuple[str | None, str]:
        """What the template writes, None where it cannot write these turns so; and then the reason."""
        try:
            text = self._apply([_turn(role, content, in_parts) for role, content in turns])
        except VlmftError:  # a signal came meanwhile
            raise
        except Exception as error:  # a template is foreign code and may raise anything
            return None, str(error)
        if all(text.count(content) == 1 for _, content in turns) and not _PRINTED_LIST.search(text):
            return text, ""
        return None, "it does not write the text of every message once"

    def _end_tokens(self, between: str, after: str) -> list[str]:
        """The tokens that end every turn, each with the whitespace before it; none if the template ends no turn.

        What follows each answer of the probe ends a turn; what follows only one opens the next turn or closes the
        text. Tokens without the special flag count, because some checkpoints add their control tokens so.
        """
        added = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.content.strip()}
        token = re.compile(rf"\s*(?:{_any_of(added).pattern})")
        ends: list[str] = []
        position = 0
        while (match := token.match(after, position)) and between.startswith(after[: match.end()]):
            ends.append(match[0])
            position = match.end()
        if not ends and match:
            raise ConfigError(
                f"the chat template ends the last answer with {match[0]!r}, but goes on with {between[:40]!r} after an "
                "earlier one: every answer must end with the same token, or the model never learns to stop"
            )
        if not ends and after.strip():
            raise ConfigError(
                f"the chat template ends an answer with {after.strip()[:40]!r}, which is no token of the tokenizer's "
                "own: add it as a special token, or use the template that belongs to this tokenizer"
            )
        return ends

    def _eos_to_write(self, between: str) -> str:
        eos = self.tokenizer.eos_token
        if not eos:
            raise ConfigError("the chat template ends no answer and the tokenizer has no EOS token: set eos_token")
        if between.lstrip().startswith(eos):
            raise ConfigError(
                f"the chat template ends every answer but the last with {eos!r}: let it end the last one with it, too"
            )
        return str(eos)

    def _lead_of(self, before: str) -> str:
        """The whitespace between the generation prompt and an answer: in "ASSISTANT: yes", the model writes " yes"."""
        question = _turn("user", QUESTION.format(0), self._in_parts)
        try:
            prompt = self._apply([question], generation=True)
        except VlmftError:  # a signal came meanwhile
            raise
        except Exception as error:  # a template is foreign code and may raise anything
            raise ConfigError(f"the checkpoint's chat template cannot write a prompt: {error}") from error
        written = before.removeprefix(prompt)
        return written if before.startswith(prompt) and written.isspace() else ""

    def _control_tokens(self) -> set[str]:
        """The strings that a text may not hold: special tokens, and what the processor replaces by media."""
        special = {token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        names = [(owner, name) for owner in (self.renderer, self.tokenizer) for name in ("image_token", "video_token")]
        media = {str(getattr(owner, name, None) or "") for owner, name in names}
        return {token for token in special | media if token.strip()}

    def _check(self, sample: Sample) -> None:
        for message in sample.messages:
            text = message.text
            if found := self._control.search(text):
                raise DataError(
                    f"sample {sample.id}: the {message.role}'s text contains {found[0]!r}, which the tokenizer reads "
                    "as a control token: remove it, or write it differently (a space inside it is enough)"
                )
            if STEM in text:
                raise DataError(f"sample {sample.id}: the {message.role}'s text contains {STEM!r}, which is reserved")
            media = [part for part in message.parts if not isinstance(part, str)]
            if not media:
                continue
            noun = "video" if isinstance(media[0], Video) else "picture"
            if message.role == "assistant":
                raise DataError(f"sample {sample.id}: an answer holds a {noun}: move it to a user's turn")
            if "user" not in self._in_parts:
                raise DataError(
                    f"sample {sample.id}: it has a {noun}, but the checkpoint's chat template takes text only: take a "
                    f"vision-language checkpoint, or leave samples with {noun}s out"
                )
            if message.role not in self._in_parts:
                raise DataError(
                    f"sample {sample.id}: its system prompt holds a {noun}, and the checkpoint's chat template takes "
                    "text alone there: move it to a user's turn"
                )

    def _apply(self, conversation: list[dict[str, Any]], generation: bool = False, **options: Any) -> str:
        options |= {"tokenize": False, "add_generation_prompt": generation}
        return str(self.renderer.apply_chat_template(conversation, **options))

    def _locate(self, sample: Sample, messages: Sequence[Message], generation: bool) -> Located:
        self._check(sample)

        def write(answers: list[str]) -> str:
            said = iter(answers)
            contents = [next(said) if m.role == "assistant" else m for m in messages]
            turns = [_turn(m.role, c, self._in_parts) for m, c in zip(messages, contents, strict=True)]
            try:
                return self._apply(turns, generation)
            except VlmftError:  # a signal came meanwhile
                raise
            except Exception as error:  # a template is foreign code and may raise anything
                raise DataError(f"sample {sample.id}: the chat template refuses the conversation: {error}") from error

        return locate_answers(sample.id, [m.text for m in messages if m.role == "assistant"], write)

    def _finish(self, sample_id: str, located: Located) -> tuple[str, tuple[Span, ...]]:
        """Widen each answer by its lead and its end; write EOS where the template writes no end."""
        pieces: list[str] = []
        spans: list[Span] = []
        position = 0
        for number, (start, end) in enumerate(located.spans):
            before, after = located.literals[number], located.literals[number + 1]
            if not after.startswith(self._end):
                raise DataError(
                    f"sample {sample_id}: the chat template ends answer {number + 1} with {after[:40]!r} instead of "
                    f"{self._end!r}"
                )
            shift = number * len(self._eos)
            # Spaces before an answer count even if they end the generation prompt: vocabularies keep a space and the
            # word after it in one token, which would begin too early, and a one-word answer would train its end alone.
            spaces = before[len(before.rstrip(" ")) :]
            lead = max(len(spaces), len(self._lead) if before.endswith(self._lead) else 0)
            pieces += [located.text[position:end], self._eos]
            spans.append((start - lead + shift, end + len(self._end) + len(self._eos) + shift))
            position = end
        return "".join([*pieces, located.text[position:]]), tuple(spans)


def _any_of(tokens: set[str]) -> re.Pattern[str]:
    """A pattern for any of `tokens`, the longest that fits; it matches nothing where there are none."""
    return re.compile(_trie(tokens) or r"(?!)")


def _trie(tokens: set[str]) -> str:
    """`tokens` as nested alternatives, one a letter.

    A flat alternative of the 6,000 reserved tokens of some vocabularies takes 19 ms for an answer of 6,000
    characters with 360 "<" in it (HTML, tables), this one 0.04 ms.
    """
    tails: dict[str, set[str]] = {}
    for token in tokens - {""}:
        tails.setdefault(token[0], set()).add(token[1:])
    branches = [re.escape(head) + _trie(rest) for head, rest in tails.items()]
    if len(branches) == 1 and "" not in tokens:
        return branches[0]
    return f"(?:{'|'.join(branches)}){'?' if '' in tokens else ''}" if branches else ""


def _last_answer(sample: Sample) -> int:
    for index in reversed(range(len(sample.messages))):
        if sample.messages[index].role == "assistant":
            return index
    raise DataError(f"sample {sample.id}: it has no assistant turn; every sample needs an answer to learn from")


def _turn(role: Role, content: str | Message, in_parts: frozenset[Role]) -> dict[str, Any]:
    """A message as `apply_chat_template` takes it. Empty texts are left out: templates look at the first part."""
    if role not in in_parts:
        return {"role": role, "content": content if isinstance(content, str) else content.text}
    parts = (content,) if isinstance(content, str) else content.parts
    return {"role": role, "content": [_part(part) for part in parts if part != ""]}


def _part(part: Part) -> dict[str, str]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "image" if isinstance(part, Image) else "video"}


def _token_starts(offsets: Sequence[Span]) -> list[int]:
    """The character at which each token begins; never decreasing.

    A token of no width begins where the one before it ends: the tokenizer adds BOS and EOS of its own with the
    offsets (0, 0), and one with `trim_offsets` (Llama 3) says of a lone space that it begins behind itself.
    """
    starts: list[int] = []
    covered = 0
    for start, end in offsets:
        starts.append(covered if start == end else start)
        covered = max(covered, end)
    return starts
