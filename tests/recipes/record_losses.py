"""Record the first losses of each shipped recipe anew, after a change that is meant to move them.

    python -m tests.recipes.record_losses

writes tests/recipes/recorded_losses.json, which test_shipped.py compares with. Say in the commit why they moved.
"""

import json
from pathlib import Path

RECORDED = Path(__file__).with_name("recorded_losses.json")


def record() -> None:
    """Take three steps under each recipe and keep the losses."""
    from tests.recipes.expected import SHIPPED
    from tests.recipes.training import trained_recipe

    losses = {name: [round(loss, 5) for loss in trained_recipe(name).losses] for name in SHIPPED}
    RECORDED.write_text(json.dumps(losses, indent=1) + "\n")


if __name__ == "__main__":
    record()
