"""One question about pictures and its answer, for a checkpoint that reads the question in both directions."""

from vlmft.encoding.chat import ChatFormat, Rendered, Tokens
from vlmft.errors import DataError
from vlmft.types import Sample


class PrefixFormat(ChatFormat):
    """How a checkpoint with `ModelSpec.prefix_lm` writes a sample: `ChatFormat` for one question and its answer.

    Each is tokenised by itself, as PaliGemma's processor does it: no token reaches from one into the other.
    All that is not supervised is the question, so the label mask also says which tokens see what follows them.
    """

    num_probed = 1

    def tokenize(self, rendered: Rendered) -> Tokens:
        """Tokenise the question, and the answer with its end.

        Raises:
            DataError: the template writes more after the answer, which the question would see.
        """
        ((start, end),) = rendered.spans
        question, answer, rest = rendered.text[:start], rendered.text[start:end], rendered.text[end:]
        if rest:
            raise DataError(
                f"sample {rendered.id}: the chat template goes on with {rest[:40]!r} after the answer's end, and this "
                "checkpoint would read that as a part of the question: let the template end there"
            )
        encoding = self._encode(question, text_pair=answer)
        return Tokens(encoding["input_ids"], [text == 1 for text in encoding.sequence_ids()])

    def _check(self, sample: Sample) -> None:
        super()._check(sample)
        roles = [message.role for message in sample.messages]
        if roles not in (["user"], ["user", "assistant"]):
            raise DataError(
                f"sample {sample.id}: its turns are {', '.join(roles)}, and this checkpoint takes one question and its "
                "answer: make each answer a sample of its own, and leave system_prompt null"
            )
        if not sample.media:
            raise DataError(
                f"sample {sample.id}: it has no picture, and this checkpoint takes questions about pictures alone: "
                "leave samples without one out"
            )
