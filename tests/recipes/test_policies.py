import dataclasses
from collections.abc import Callable

import pytest

from tests.recipes.expected import BLOCKS, LLM, LLM_LINEAR, LLM_NORMS, PROJECTOR, TOWER, TOWER_LINEAR, TOWER_NORMS
from tests.support import CPU, literally, policy, tiny
from vlmft.errors import ConfigError
from vlmft.recipes import Policy
from vlmft.recipes.apply import components_of
from vlmft.recipes.policies import Component, Selection

Select = Callable[..., Selection]


@pytest.fixture(scope="module")
def components() -> dict[str, Component]:
    return components_of(tiny().load_model(CPU), tiny())


@pytest.fixture
def select(components: dict[str, Component]) -> Select:
    def chosen(component: str, name: str, **changes: object) -> Selection:
        spec: Policy = policy(name, **changes)
        return spec.select(components[component])

    return chosen


def in_block(names: tuple[str, ...], *blocks: str) -> set[str]:
    return {name for name in names if name.startswith(blocks)}


@pytest.mark.parametrize("component", ["vision_tower", "projector", "llm"])
def test_frozen_selects_nothing(select: Select, component: str) -> None:
    assert select(component, "frozen") == Selection()


@pytest.mark.parametrize(("component", "names"), [("vision_tower", TOWER), ("projector", PROJECTOR), ("llm", LLM)])
def test_full_selects_every_weight(select: Select, component: str, names: tuple[str, ...]) -> None:
    assert select(component, "full") == Selection(full=frozenset(names))


@pytest.mark.parametrize(
    ("component", "modules"),
    [("vision_tower", TOWER_NORMS), ("projector", ("model.visual.merger.ln_q",)), ("llm", LLM_NORMS)],
)
def test_norms_selects_every_normalisation_layer(select: Select, component: str, modules: tuple[str, ...]) -> None:
    assert select(component, "norms") == Selection(full=frozenset(f"{module}.weight" for module in modules))


def test_norms_leaves_out_a_layer_whose_name_only_begins_alike() -> None:
    parameters = {"tower.ln.weight": None, "tower.ln.bias": None, "tower.ln_out.weight": None}
    tower = Component("vision_tower", parameters, {}, norms=("tower.ln",), blocks=(), head=None)  # type: ignore[arg-type]
    assert policy("norms").select(tower).full == {"tower.ln.weight", "tower.ln.bias"}


def test_norms_without_a_normalisation_layer(components: dict[str, Component]) -> None:
    bare = Component("projector", components["projector"].parameters, {}, norms=(), blocks=(), head=None)
    with pytest.raises(ConfigError, match=literally("recipe.projector: Norms found no normalisation layer")):
        policy("norms").select(bare)


@pytest.mark.parametrize(("component", "names"), [("vision_tower", TOWER), ("llm", LLM)])
def test_top_k_selects_the_last_blocks(select: Select, component: str, names: tuple[str, ...]) -> None:
    path = {"vision_tower": "model.visual.blocks", "llm": "model.language_model.layers"}[component]
    assert select(component, "topk", k=1).full == in_block(names, f"{path}.1.")
    assert select(component, "topk", k=2).full == in_block(names, f"{path}.0.", f"{path}.1.")


def test_top_k_counts_blocks_by_number_not_by_spelling() -> None:
    blocks = tuple(f"tower.blocks.{i}" for i in range(12))
    parameters = {f"{block}.weight": None for block in blocks}
    deep = Component("vision_tower", parameters, {}, norms=(), blocks=blocks, head=None)  # type: ignore[arg-type]
    assert policy("topk", k=2).select(deep).full == {"tower.blocks.10.weight", "tower.blocks.11.weight"}
    assert policy("topk", k=11).select(deep).full == parameters.keys() - {"tower.blocks.0.weight"}


@pytest.mark.parametrize(("component", "has"), [("vision_tower", 2), ("projector", 0), ("llm", 2)])
def test_top_k_of_more_blocks_than_there_are(select: Select, component: str, has: int) -> None:
    message = f"recipe.{component}.k: 3 blocks asked for, the component has {has}"
    with pytest.raises(ConfigError, match=literally(message)):
        select(component, "topk", k=3)


@pytest.mark.parametrize(
    ("component", "layers"),
    [
        ("vision_tower", TOWER_LINEAR),
        ("projector", ("model.visual.merger.mlp.0", "model.visual.merger.mlp.2")),
        ("llm", LLM_LINEAR),
    ],
)
def test_lora_adapts_every_linear_layer_but_the_head(select: Select, component: str, layers: tuple[str, ...]) -> None:
    assert select(component, "lora") == Selection(adapted=layers)


def test_lora_adapts_layers_by_their_own_name(select: Select) -> None:
    expected = {f"model.language_model.layers.{i}.self_attn.{name}" for i in BLOCKS for name in ("q_proj", "v_proj")}
    assert set(select("llm", "lora", targets=["q_proj", "v_proj"]).adapted) == expected


TOWER_ATTENTION = {layer for layer in TOWER_LINEAR if ".attn." in layer}
LLM_MLP = {layer for layer in LLM_LINEAR if ".mlp." in layer}


@pytest.mark.parametrize(
    ("component", "targets", "layers"),
    [
        ("vision_tower", "attention", TOWER_ATTENTION),
        ("vision_tower", "mlp", set(TOWER_LINEAR) - TOWER_ATTENTION),
        ("llm", "mlp", LLM_MLP),
        ("llm", ["attention", "down_proj"], {n for n in LLM_LINEAR if ".self_attn." in n or n.endswith("down_proj")}),
        ("llm", "*.layers.1.mlp.*", {n for n in LLM_MLP if ".layers.1." in n}),
        ("llm", ["*.[01].self_attn.[qv]_proj"], {n for n in LLM_LINEAR if n.endswith(("q_proj", "v_proj"))}),
    ],
)
def test_lora_adapts_groups_and_patterns(select: Select, component: str, targets: object, layers: set[str]) -> None:
    assert set(select(component, "lora", targets=targets).adapted) == layers


def test_lora_takes_the_last_modules(select: Select) -> None:
    assert select("llm", "lora", last_modules=3).adapted == LLM_LINEAR[-3:]
    expected = tuple(name for name in LLM_LINEAR if name.endswith("q_proj"))[-1:]
    assert select("llm", "lora", targets=["q_proj"], last_modules=1).adapted == expected
    message = "recipe.llm.last_modules: 99 layers asked for, targets and exclude leave 14"
    with pytest.raises(ConfigError, match=literally(message)):
        select("llm", "lora", last_modules=99)


def test_lora_reaches_the_head_where_it_is_named(select: Select) -> None:
    assert select("llm", "lora", targets=["lm_head"]).adapted == ("lm_head",)


@pytest.mark.parametrize("targets", [["embed_tokens"], ["embed_tokens", "lm_head", "q_proj"]])
def test_lora_leaves_an_embedding_alone_that_is_the_head(select: Select, targets: list[str]) -> None:
    with pytest.raises(ConfigError, match="embed_tokens cannot be adapted: it is one weight with the head in this mod"):
        select("llm", "lora", targets=targets)


def test_lora_adapts_an_embedding_only_with_its_head(components: dict[str, Component]) -> None:
    untied = dataclasses.replace(components["llm"], tied=False)
    both = policy("lora", targets=["embed_tokens", "lm_head"]).select(untied)
    assert both == Selection(adapted=("model.language_model.embed_tokens", "lm_head"))
    assert policy("lora", targets=["lm_head"]).select(untied).adapted == ("lm_head",)
    with pytest.raises(ConfigError, match="embed_tokens is adapted only together with the head: the model would read"):
        policy("lora", targets=["embed_tokens"]).select(untied)
    for group in ("all-linear", "attention", "mlp", "*"):
        assert not {"lm_head", untied.embedding} & set(policy("lora", targets=group).select(untied).adapted)


def test_a_pattern_that_matches_nothing_shows_paths(select: Select) -> None:
    with pytest.raises(ConfigError, match=literally("no linear layer's path matches '*.layers.7.*'; some are: ")):
        select("llm", "lora", targets=["*.layers.7.*"])
    with pytest.raises(ConfigError, match=literally("recipe.projector.targets: no linear layer is named 'attention'")):
        select("projector", "lora", targets="attention")


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "gate_proj"]])
def test_lora_leaves_out_what_is_excluded(select: Select, targets: object) -> None:
    everything = select("llm", "lora", targets=targets).adapted
    chosen = select("llm", "lora", targets=targets, exclude=["mlp", "k_proj"]).adapted
    assert chosen == tuple(name for name in everything if ".mlp." not in name and not name.endswith("k_proj"))
    assert chosen and chosen != everything


def test_lora_leaves_out_a_block_by_its_number(select: Select) -> None:
    assert set(select("llm", "lora", exclude=["0"]).adapted) == {n for n in LLM_LINEAR if ".layers.1." in n}


def test_an_unknown_target_or_exclusion_names_the_nearest_and_all_are_listed(select: Select) -> None:
    with pytest.raises(ConfigError) as raised:
        select("llm", "lora", targets=["q_prj", "v_proj", "zzz"])
    first, second = raised.value.problems
    assert first.startswith("recipe.llm.targets: no linear layer is named 'q_prj'; near: q_proj")
    assert second == (
        "recipe.llm.targets: no linear layer is named 'zzz'; "
        "near: all-linear, attention, down_proj, embed_tokens, gate_proj, k_proj, lm_head, mlp, o_proj, q_proj, "
        "up_proj, v_proj"
    )
    with pytest.raises(ConfigError, match=literally("recipe.llm.exclude: no linear layer is named 'mpl'; near: mlp")):
        select("llm", "lora", exclude=["mpl"])


def test_excluding_everything_is_an_error(select: Select) -> None:
    with pytest.raises(ConfigError, match=literally("recipe.llm: Lora finds no linear layer to adapt; see targets")):
        select("llm", "lora", exclude=["self_attn", "mlp"])


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("lora", {"rank": 0}, "rank: Input should be greater than or equal to 1"),
        ("lora", {"alpha": 0}, "alpha: Input should be greater than 0"),
        ("lora", {"dropout": 1.0}, "dropout: Input should be less than 1"),
        ("lora", {"base": "nf3"}, "base: Input should be 'nf4', 'int8' or 'bf16'"),
        ("frozen", {"base": "nf4"}, "base: Input should be 'bf16'"),
        ("full", {"base": "bf16"}, "base: unknown key: Frozen and Lora have it, and this is Full; choose another, or"),
        ("lora", {"k": 2}, "k: unknown key: TopK has it, and this is Lora; choose another, or leave it out"),
        ("topk", {"k": 0}, "k: Input should be greater than or equal to 1"),
        ("full", {"lr_factor": 0}, "lr_factor: Input should be greater than 0"),
        ("frozen", {"rank": 1}, "rank: unknown key: Lora has it, and this is Frozen; choose another, or leave it out"),
    ],
)
def test_values_out_of_range(name: str, changes: dict[str, object], problem: str) -> None:
    with pytest.raises(ConfigError, match=literally(problem)):
        policy(name, **changes)
