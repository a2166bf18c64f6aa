import pytest

from tests.support import literally
from vlmft.data.placeholders import PLACEHOLDER, placeholder, refuse_placeholder
from vlmft.errors import DataError


def test_a_placeholder_is_marked_and_refused() -> None:
    text = placeholder("I can see {objects}.")
    assert text == "[ANNOTATE: I can see {objects}.]" and text.startswith(PLACEHOLDER)
    message = "turn 2 is still to be filled in: [ANNOTATE: I can see {objects}.]; write the answer there, or leave"
    with pytest.raises(DataError, match=literally(message)):
        refuse_placeholder(text, "turn 2")


def test_one_in_the_middle_is_refused_and_shown_in_part() -> None:
    with pytest.raises(DataError, match=literally(f"the answer is still to be filled in: [ANNOTATE: {'x' * 69}...;")):
        refuse_placeholder(f"Red. {placeholder('x' * 200)}")


@pytest.mark.parametrize("text", ["", "I can see {objects}.", "Annotate: it", "[annotate: lower case]"])
def test_other_texts_pass(text: str) -> None:
    refuse_placeholder(text)
