import pytest

from tests.support import literally
from vlmft.errors import ConfigError
from vlmft.training.step_plan import StepPlan


class TestPlan:
    @pytest.mark.parametrize(
        ("num_samples", "batch", "epochs", "max_steps", "world", "steps"),
        [
            (6000, 16, 1, None, 1, 375),
            (6000, 16, 2.5, None, 1, 938),  # 937.5: the last step is filled from the next pass
            (100, 16, 1, None, 4, 7),
            (5, 16, 1, None, 2, 1),
            (6000, 16, 0.0001, None, 1, 1),
            (6000, 16, 100, 3, 1, 3),
        ],
    )
    def test_counts_steps(
        self, num_samples: int, batch: int, epochs: float, max_steps: int | None, world: int, steps: int
    ) -> None:
        plan = StepPlan.derive(num_samples, batch, epochs, max_steps, world)
        assert (plan.num_steps, plan.global_batch_size, plan.world_size) == (steps, batch, world)

    def test_ranks_that_cannot_share_a_step_are_refused(self) -> None:
        expected = "global_batch_size: 16 samples a step cannot be shared evenly by 3 ranks"
        with pytest.raises(ConfigError, match=literally(expected)):
            StepPlan.derive(6000, 16, 1, None, 3)

    def test_says_its_arithmetic(self) -> None:
        assert str(StepPlan.derive(6000, 16, 1, 500, 2)) == (
            "16 samples a step = 2 ranks x 8; 500 steps x 16 = 8000 samples = 1.33 passes over 6000"
        )

    @pytest.mark.parametrize("world", [1, 2, 4])
    def test_every_step_is_exactly_the_global_batch_over_all_ranks(self, world: int) -> None:
        plan = StepPlan.derive(10, 8, 1, 3, world)
        for step in range(3):
            shares = [list(plan.positions(step, rank)) for rank in range(world)]
            assert {len(share) for share in shares} == {8 // world}
            assert sorted(sum(shares, [])) == list(range(8 * step, 8 * step + 8))
