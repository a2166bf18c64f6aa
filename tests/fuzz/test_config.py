import math
from pathlib import Path

import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.cases import QUICK, SIZES, THOROUGH, cases, only_own_errors
from vlmft.config.grammar import expand
from vlmft.config.registry import load_registry
from vlmft.config.roots import Root

NAMES = st.sampled_from(["A", "B", "C-1", "mix", "deep", "none", "loop", "", "Ä", "a b"])
NUMBERS = st.one_of(
    st.integers(-2, 10**20).map(str),
    st.floats().map(repr),
    st.sampled_from(["0.25", ".5", "1e-5", "1e400", "1e-400", "٣", "½", "--", "", "0x1", "9" * 5000]),
)
TERMS = st.one_of(
    NAMES,
    st.builds("{}{}{}".format, NAMES, st.sampled_from(["*", "@", "**", "@@", " * "]), NUMBERS),
    st.text(max_size=8),
)
EXPRESSIONS = st.lists(TERMS, max_size=6).map("+".join) | st.text(max_size=30)
MIXTURES = st.dictionaries(
    st.sampled_from(["mix", "deep", "loop", "A"]), EXPRESSIONS | st.lists(EXPRESSIONS, max_size=3), max_size=4
)

# Fragments that YAML and OmegaConf give a meaning of their own.
FRAGMENTS = st.sampled_from(
    [
        "A:", "B: ", "  _target_: vlmft.data.LLaVADataset", "  data_path: x", "\n", "\n  ", "\t", "- ", "? ", ": ",
        "[", "]", "{", "}", ",", "&a ", "*a", "<<: *a", "!!int ", "!!timestamp ", "!!python/object/apply:os.system ",
        "!!binary ", "!!set ", "!!omap ", "!!float ", "!!bool ", "!!map ", "x",
        "!!null ", "!x ", "%YAML 9.9\n", "---\n", "...\n", "|", ">", "'",
        '"', "\\", "\\x", "#", "${", "}", "${oc.env:HOME}", "${x", "\\${", "???", "2001-99-99", "0o9", "1_0", ".inf",
        "9" * 5000, "\x00", "\ud800", "\ufeff", "\u2028", "é", "@", "`", "~", "yes", "1", "1.5", "factor: 2", "none:",
        "defaults:", "null:", "[" * 400, "{a: " * 300,
    ]
)  # fmt: skip
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.binary(max_size=4))
VALUES = st.recursive(
    SCALARS | st.dates(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(SCALARS, below, max_size=3),
    max_leaves=8,
)


def test_as_many_cases_as_promised() -> None:
    assert sum(QUICK.values()) == 2_000
    assert sum(QUICK.values()) * THOROUGH == 10_000


@SIZES
def test_the_mixture_grammar(times: int) -> None:
    @cases("grammar", times)
    @given(EXPRESSIONS, MIXTURES)
    def case(expression: str, mixtures: dict[str, str | list[str]]) -> None:
        with only_own_errors():
            found = expand(expression, ["A", "B", "C-1"], mixtures)
            assert found and set(found) <= {"A", "B", "C-1"}
            assert all(0 < factor < math.inf for factor in found.values())

    case()


@SIZES
def test_the_text_of_a_registry(times: int, tmp_path: Path) -> None:
    @cases("registry text", times)
    @given(st.lists(FRAGMENTS | st.text(max_size=6), max_size=12).map("".join), st.sampled_from(FILES))
    def case(text: str, file: str) -> None:
        read(tmp_path, file, text.encode(errors="surrogatepass"))

    case()


@SIZES
def test_the_values_of_a_registry(times: int, tmp_path: Path) -> None:
    @cases("registry values", times)
    @given(st.dictionaries(NAMES | SCALARS, VALUES | MIXTURES, max_size=4), st.sampled_from(FILES))
    def case(values: dict[object, object], file: str) -> None:
        read(tmp_path, file, yaml.dump(values, encoding="utf-8"))

    case()


FILES = ["datasets/mine.yaml", "metrics/mine.yaml", "mixtures.yaml"]


def read(folder: Path, file: str, data: bytes) -> None:
    for other in FILES:
        (folder / "registry" / other).unlink(missing_ok=True)
    path = folder / "registry" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    with only_own_errors():
        registry = load_registry([Root(folder, "a test")])
        for name in registry.names("datasets"):
            with only_own_errors():
                assert registry.select("datasets", name)
