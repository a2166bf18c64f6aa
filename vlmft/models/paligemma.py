"""PaliGemma, 1 and 2: SigLIP's tower at one size, one linear layer, a Gemma or Gemma 2 that reads questions both ways.

There is no chat template: the processor itself puts what begins a text behind the pictures, and a newline behind the
question, and takes the answer by itself. `Renderer` writes a conversation in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from vlmft.config.media import PixelBudget
from vlmft.errors import ConfigError
from vlmft.models.pictures import FixedSize
from vlmft.models.spec import MediumText
from vlmft.models.tiny import TinyCheckpoint

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Renderer:
    """Writes one question, and its answer where there is one, as PaliGemma's processor does with prefix and suffix."""

    image_token: str
    bos: str
    eos: str

    def apply_chat_template(self, conversation: Sequence[Any], /, **options: Any) -> str:
        """The text of a question and its answer; what begins a text stands behind the last picture."""
        question, *answer = (
            "".join(self.image_token if part["type"] == "image" else part["text"] for part in message["content"])
            for message in conversation
        )
        pictures, mark, words = question.rpartition(self.image_token)
        return "".join([pictures, mark, self.bos, words, "\n", *(text + self.eos for text in answer)])


class PaliGemma(FixedSize):
    """A checkpoint of transformers' `PaliGemmaForConditionalGeneration`; a sample is one question and its answer.

    It was taught boxes as tokens (`<loc0000>` to `<loc1023>`, top and left first), which a text may hold as it is;
    `coordinates` of an entry writes thousandths, not those.
    """

    coordinate_style: ClassVar = "thousand"
    masks: ClassVar = "that a question is read in both directions"
    prefix_lm: ClassVar = True
    unpacked_because: ClassVar = "a question is read in both directions, by masks that know of one sample a row"

    @property
    def attention_asked(self) -> str | None:
        """See `ModelSpec`. Gemma 2 caps its attention's logits, which transformers computes in eager alone."""
        return None if self.attention == "sdpa" else self.attention

    def renderer(self, processor: Any) -> Renderer:
        """See `ModelSpec`."""
        if processor.chat_template:
            raise ConfigError(
                f"model.path: {self.path} brings a chat template, and {type(processor).__name__} writes "
                "the beginning and end of a question itself: take that template out of a copy of the folder"
            )
        tokenizer = processor.tokenizer
        return Renderer(processor.image_token, tokenizer.bos_token, tokenizer.eos_token)

    def processor_text(self, processor: Any, prompt: str) -> str:
        """See `ModelSpec`: without what the processor adds."""
        return prompt.replace(processor.tokenizer.bos_token, "", 1).removesuffix("\n")

    def image_text(self, processor: Any, size: tuple[int, int], budget: PixelBudget, alone: bool = True) -> MediumText:
        """See `ModelSpec`: a fixed number of tokens."""
        self.seen_image(processor, size, budget)
        return MediumText(processor.image_token, (processor.image_seq_length,))

    def token_inputs(self, input_ids: "Tensor", supervised: "Tensor") -> dict[str, "Tensor"]:
        """See `ModelSpec`. `token_type_ids` [B, S] is 1 for the answer, which alone is causal, 0 for all else."""
        return {"token_type_ids": supervised.long()}


class TinyPaliGemma(TinyCheckpoint, PaliGemma):
    """A PaliGemma 2 of the real classes with random weights, small enough to learn on a CPU."""
