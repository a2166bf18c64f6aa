import copy

import pytest
import torch

from vlmft.training.joined import JoinedOptimizer


def parts() -> tuple[list[torch.nn.Parameter], JoinedOptimizer]:
    made = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(3, 3, generator=made)) for _ in range(4)]
    first = torch.optim.SGD([{"params": weights[:1], "lr": 0.1}, {"params": weights[1:2], "lr": 0.2}], momentum=0.9)
    return weights, JoinedOptimizer([first, torch.optim.AdamW(weights[2:], lr=0.3)])


def step(weights: list[torch.nn.Parameter], joined: JoinedOptimizer) -> None:
    joined.zero_grad()
    sum(weight.square().sum() for weight in weights).backward()  # type: ignore[union-attr]
    joined.step()


def test_its_groups_are_those_of_its_parts() -> None:
    weights, joined = parts()
    schedule = torch.optim.lr_scheduler.LambdaLR(joined, lambda step: 0.5)
    assert [group["lr"] for part in joined.parts for group in part.param_groups] == [0.05, 0.1, 0.15]
    assert schedule.get_last_lr() == [0.05, 0.1, 0.15]
    before = [weight.detach().clone() for weight in weights]
    step(weights, joined)
    assert not any(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


def test_state_goes_out_and_in_to_the_bit() -> None:
    (one, joined), (two, again) = parts(), parts()
    for _ in range(2):
        step(one, joined)
    state = copy.deepcopy(joined.state_dict())  # torch hands out its own tensors
    assert sorted(state["state"]) == [0, 1, 2, 3]
    assert [group["params"] for group in state["param_groups"]] == [[0], [1], [2, 3]]
    with torch.no_grad():
        for weight, other in zip(two, one, strict=True):
            weight.copy_(other)
    again.load_state_dict(state)
    assert [id(group) for group in again.param_groups] == [id(g) for part in again.parts for g in part.param_groups]
    step(one, joined)
    step(two, again)
    assert all(torch.equal(weight, other) for weight, other in zip(two, one, strict=True))


def test_takes_no_closure() -> None:
    with pytest.raises(ValueError, match="^a joined optimiser takes no closure$"):
        parts()[1].step(lambda: 0.0)
