import pytest
import yaml

from tests.support import PROJECT, compose, literally, policy
from vlmft.config.spec import validate
from vlmft.errors import ConfigError
from vlmft.recipes import Full, Lora, Recipe

COMPONENTS = ("vision_tower", "projector", "llm")


@pytest.mark.parametrize(
    ("field", "values"), [("dropout", (0.1, 0.0)), ("dora", (True, False)), ("rslora", (True, False))]
)
def test_what_peft_knows_once_must_agree(field: str, values: tuple[object, object]) -> None:
    config = compose("recipe=lora_vt_llm").recipe.to_config()
    config["vision_tower"][field], config["llm"][field] = values
    message = f"{field} must be the same in every component with adapters; found {{'vision_tower': {values[0]}, 'llm'"
    with pytest.raises(ConfigError, match=literally(message)):
        validate(Recipe, config)
    config["llm"][field] = values[0]
    assert getattr(validate(Recipe, config).adapters["llm"], field) == values[0]


def test_the_command_says_so_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AssertionError, match="exit code 2"):
        compose("recipe=lora_vt_llm", "recipe.vision_tower.dropout=0.1")
    assert "dropout must be the same in every component with adapters" in capsys.readouterr().err


TWO_BASES = (
    "recipe: base: nf4 and int8 cannot stand in one model, since its loader quantises in one way alone; found "
    "{'vision_tower': 'int8', 'llm': 'nf4'}: take one of them for both, or null or bf16 for one"
)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (  # an adapter on a frozen component
            ["recipe=ln_vt", "recipe.llm.rank=8"],
            "recipe.llm.rank: unknown key: Lora has it, and this is Frozen; choose another, or leave it out",
        ),
        (  # a base in 4 bits under full training
            ["recipe=lora_llm_nf4", "recipe/policy@recipe.llm=full"],
            "recipe.llm.base: unknown key: Frozen and Lora have it, and this is Full; choose another, or leave it out",
        ),
        (
            ["recipe=fft", "recipe.llm.base=bf16"],
            "recipe.llm.base: unknown key: Frozen and Lora have it, and this is Full; choose another, or leave it out",
        ),
        (
            ["recipe=lora_llm_nf4", "recipe/policy@recipe.llm=frozen"],
            "recipe.llm.base: Input should be 'bf16' (found 'nf4')",
        ),
        (
            ["recipe=lora_llm", "recipe.llm.rank=0"],
            "recipe.llm.rank: Input should be greater than or equal to 1 (found 0)",
        ),
        (["recipe=lora_vt_llm_nf4", "recipe.vision_tower.base=int8"], TWO_BASES),
        (
            ["recipe=lora_llm_int8", "recipe.llm.dora=true"],
            "recipe.llm: dora does not work on a base in int8; take base=nf4 or bf16, or dora=false",
        ),
    ],
)
def test_a_contradiction_is_named_by_its_path_with_a_way_out(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(AssertionError, match="exit code 2"):
        compose(*words)
    assert capsys.readouterr().err.splitlines() == [f"error: {message}"]


def test_the_custom_recipe_shows_every_knob() -> None:
    shown = yaml.safe_load((PROJECT / "conf/recipe/custom.yaml").read_text())
    assert shown.keys() - {"defaults", "_target_"} == Recipe.model_fields.keys()
    for component, kind in {"vision_tower": Lora, "projector": Full, "llm": Lora}.items():
        assert shown[component].keys() == kind.model_fields.keys(), component


def test_each_component_has_a_base_of_its_own() -> None:
    recipe = compose("recipe=lora_vt_llm_nf4", "recipe.vision_tower.base=bf16").recipe
    assert (recipe.bases, recipe.quantised) == ({"vision_tower": "bf16", "llm": "nf4"}, {"llm": "nf4"})


def test_adapters_are_the_components_with_lora() -> None:
    assert set(compose("recipe=lora_vt_llm").recipe.adapters) == {"vision_tower", "llm"}
    assert compose("recipe=fft").recipe.adapters == {}


def test_a_component_of_a_family_needs_a_policy() -> None:
    recipe = compose("recipe=fft").recipe
    with pytest.raises(ConfigError, match=literally("recipe.extras.resampler: needed: this model has a component")):
        recipe.policies([*COMPONENTS, "resampler"])


def test_a_policy_needs_its_component() -> None:
    recipe = Recipe(**(dict(compose("recipe=fft").recipe) | {"extras": {"resampler": policy("full")}}))
    assert isinstance(recipe.policies([*COMPONENTS, "resampler"])["resampler"], Full)
    message = "recipe.extras.resampler: this model has no such component; it has vision_tower, projector, llm"
    with pytest.raises(ConfigError, match=literally(message)):
        recipe.policies(COMPONENTS)


def test_a_recipe_starts_from_the_checkpoints_rate_of_its_kind() -> None:
    model = compose().model
    for recipe, rate in {"fft": model.lr.full, "projector": model.lr.full, "lora_vt_llm": model.lr.adapter}.items():
        config = compose(f"recipe={recipe}")
        assert config.optim.lr == config.recipe.lr == rate


def test_a_recipe_is_rebuilt_from_what_is_saved_of_it() -> None:
    recipe = compose("recipe=ln_vt_lora_llm").recipe
    assert validate(Recipe, recipe.to_config()) == recipe
