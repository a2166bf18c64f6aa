import pytest
from pydantic import Field

from vlmft.config.spec import Spec, validate
from vlmft.errors import ConfigError

HERE = __name__


class Shape(Spec, abstract=True):
    pass


class Square(Shape):
    side: float = Field(gt=0)


class Circle(Shape):
    radius: float = 1.0


class Drawing(Spec):
    name: str
    shapes: dict[str, Shape] = {}
    first: Shape | None = None


# Specs are resolved in the packages that may bring targets, of which the tests are none.
@pytest.fixture(autouse=True)
def _targets_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmft.config.targets._allowed_packages", {"vlmft", HERE.partition(".")[0]})


def problems(values: dict[str, object]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        validate(Drawing, values)
    return caught.value.problems


def test_a_target_names_the_member_of_a_family() -> None:
    drawing = validate(Drawing, {"name": "d", "shapes": {"s": {"_target_": f"{HERE}.Square", "side": 2}}})
    assert drawing.shapes["s"] == Square(side=2)


def test_every_problem_is_listed_with_its_path() -> None:
    assert problems(
        {
            "nam": "d",
            "shapes": {
                "a": {"_target_": f"{HERE}.Square", "side": "wide"},
                "b": {"_target_": f"{HERE}.Square", "side": -1, "sid": 3},
                "c": {"_target_": "os.system", "command": "x"},
                "d": {"side": 3},
                "e": {"_target_": f"{HERE}.Drawing"},
                "f": 7,
            },
            "zzz": 1,
        }
    ) == (
        "name: Field required",
        "shapes.a.side: Input should be a valid number, unable to parse string as a number (found 'wide')",
        "shapes.b.side: Input should be greater than 0 (found -1)",
        "shapes.b.sid: unknown key; did you mean side?",
        "shapes.c: _target_ 'os.system' is not allowed: targets may come from "
        f"{', '.join(sorted(['vlmft', HERE.partition('.')[0]]))}; "
        "a user root adds its own packages in root.yaml (packages: [my_project])",
        "shapes.d: needs a _target_ that names a Shape",
        f"shapes.e: _target_ '{HERE}.Drawing' is not allowed: it is no Shape",
        "shapes.f: Input should be a valid dictionary or instance of Shape (found 7)",
        "nam: unknown key; did you mean name?",
        "zzz: unknown key; known here: name, shapes, first",
    )


def test_the_family_itself_is_no_member() -> None:
    assert problems({"name": "d", "first": {"_target_": f"{HERE}.Shape"}}) == (
        "first: needs a _target_ that names a Shape",
    )


def test_specs_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Circle().radius = 2  # type: ignore[misc]


def test_a_spec_written_out_builds_an_equal_one() -> None:
    drawing = Drawing(name="d", shapes={"s": Square(side=2)}, first=Circle())
    assert validate(Drawing, drawing.to_config()) == drawing
