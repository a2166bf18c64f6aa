from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support import compose, encoding, literally, read_llava, tiny_processor, with_recipe, write_llava
from tests.training.rolling import objective, prompts
from vlmft.encoding.loading import EncodedGroup
from vlmft.errors import StorageError
from vlmft.run_folder import RunFolder
from vlmft.training.completions import is_kept, rows_of, write


@pytest.fixture(scope="module")
def completions(tmp_path_factory: pytest.TempPathFactory) -> Any:
    samples = read_llava(write_llava(tmp_path_factory.mktemp("data")))
    return objective(with_recipe(compose())).begin(0, EncodedGroup(prompts(samples[:2])))


def test_a_table_has_a_row_for_each_completion(completions: Any, tmp_path: Path) -> None:
    write(tmp_path / "completions", rows_of(6, completions, encoding()[1]))
    table = pq.read_table(tmp_path / "completions/step-00000007.parquet")
    assert table.column_names == [
        "step",
        "id",
        "prompt",
        "completion",
        "solution",
        "reward",
        "advantage",
        "rewards/varied",
        "ended",
        "completion_ids",
    ]
    rows = table.to_pylist()
    assert [row["id"] for row in rows] == ["mine/one"] * 3 + ["mine/two"] * 3
    for row, one in zip(rows, completions, strict=True):
        assert row["completion_ids"] == one.rollout.ids.tolist()
        assert row["completion"] == tiny_processor().tokenizer.decode(row["completion_ids"], skip_special_tokens=True)
        assert (row["step"], row["reward"], row["advantage"]) == (7, one.reward, one.advantage)
        assert row["reward"] == pytest.approx(2 * row["rewards/varied"])
    prompt = rows[3]["prompt"]
    assert prompt.count("<|image_pad|>") == 2 and prompt.endswith("<|im_start|>assistant\n")
    assert "Which digit is written here?" in prompt and rows[3]["solution"] == "seven"


def test_a_secret_system_prompt_is_in_no_file(completions: Any, tmp_path: Path) -> None:
    rows = rows_of(0, completions, encoding()[1], kept_out={"mine"})
    assert {row["prompt"] for row in rows} == {"not shown: its system prompt comes from the environment"}
    text = "dataset:\n  mine: {system_prompt: '${oc.env:SECRET}'}\n  open: {system_prompt: Be brief.}\n  none: {}\n"
    assert RunFolder.create(tmp_path / "run", text).entries_kept_out() == {"mine"}


def test_text_that_utf8_cannot_hold_is_replaced(completions: Any, tmp_path: Path) -> None:
    completions[0].solution = "half \ud83d of it"
    write(tmp_path, rows_of(0, completions, encoding()[1]))
    assert pq.read_table(tmp_path / "step-00000001.parquet").to_pylist()[0]["solution"] == "half ? of it"


def test_a_folder_that_cannot_be_written_is_named(completions: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=literally(f"cannot write {tmp_path / 'file/step-00000001.parquet'}: ")):
        write(tmp_path / "file", rows_of(0, completions, encoding()[1]))


def test_the_first_step_and_each_nth_are_kept() -> None:
    assert [step + 1 for step in range(12) if is_kept(step, 5)] == [1, 5, 10]
    assert not any(is_kept(step, None) for step in range(12))
