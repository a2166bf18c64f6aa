import pytest
from torch import nn

from tests.recipes.expected import LLM, LLM_NORMS, PROJECTOR, TOWER, TOWER_NORMS
from tests.support import CPU, tiny
from vlmft.models.components import blocks_of, component_of, normalisation_modules, parameters_by_component

PATHS = {"tower": ("model.visual",), "projector": ("model.visual.merger",), "llm": ("model.llm", "lm_head")}


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("model.visual.blocks.0.weight", "tower"),
        ("model.visual", "tower"),
        ("model.visual.merger.mlp.0.weight", "projector"),
        ("model.visual.merger", "projector"),
        ("model.visual.merger2.weight", "tower"),
        ("model.llm.layers.0.weight", "llm"),
        ("lm_head.weight", "llm"),
    ],
)
def test_the_longest_path_that_ends_at_a_dot_wins(name: str, component: str) -> None:
    assert component_of(name, PATHS) == component


@pytest.mark.parametrize("name", ["model", "model.visuals.weight", "lm_head2.weight", "visual.merger.weight", ""])
def test_a_name_outside_every_path(name: str) -> None:
    with pytest.raises(KeyError, match=r"belongs to no component: the paths are .*lm_head"):
        component_of(name, PATHS)


def test_every_parameter_of_the_tiny_model_is_in_exactly_one_component() -> None:
    model = tiny().load_model(CPU)
    found = parameters_by_component(model, tiny().component_paths)
    assert {name: set(parameters) for name, parameters in found.items()} == {
        "vision_tower": set(TOWER),
        "projector": set(PROJECTOR),
        "llm": set(LLM),
    }
    live = dict(model.named_parameters())
    assert all(parameter is live[name] for group in found.values() for name, parameter in group.items())


def test_a_parameter_that_the_family_does_not_know() -> None:
    model = tiny().load_model(CPU)
    model.model.add_module("audio", nn.Linear(2, 2))
    with pytest.raises(KeyError, match=r"model\.audio\.weight belongs to no component"):
        parameters_by_component(model, tiny().component_paths)


def test_blocks_lie_in_one_list_or_in_several_one_behind_the_other() -> None:
    model = nn.ModuleDict({"late": nn.ModuleList([nn.Linear(1, 1)] * 2), "early": nn.ModuleList([nn.Linear(1, 1)])})
    assert blocks_of(model, None) == ()
    assert blocks_of(model, "late") == ("late.0", "late.1")
    assert blocks_of(model, ("early", "late")) == ("early.0", "late.0", "late.1")


def test_the_normalisation_layers_of_the_tiny_model() -> None:
    found = [name for name, _ in normalisation_modules(tiny().load_model(CPU))]
    assert sorted(found) == sorted((*TOWER_NORMS, "model.visual.merger.ln_q", *LLM_NORMS))


def test_normalisation_layers_by_type_not_by_name() -> None:
    class FamilyRMSNorm(nn.Module):
        pass

    class FamilyRMSNormGated(nn.Module):
        pass

    class Child(nn.LayerNorm):
        pass

    class Normaliser(nn.Module):
        pass

    model = nn.ModuleDict(
        {
            "a": nn.LayerNorm(2),
            "b": nn.GroupNorm(1, 2),
            "c": nn.RMSNorm(2),
            "d": nn.BatchNorm2d(2),
            "e": FamilyRMSNorm(),
            "f": Child(2),
            "norm": nn.Linear(2, 2),
            "g": Normaliser(),
            "h": FamilyRMSNormGated(),
        }
    )
    assert [name for name, _ in normalisation_modules(model)] == ["a", "b", "c", "d", "e", "f", "h"]
