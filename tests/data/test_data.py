import os

from tests.data.making import in_new_process


def test_specs_are_light():
    code = """
import json, sys
import vlmft.data
heavy = ("numpy", "PIL", "sklearn", "torch", "transformers", "hydra", "omegaconf")
print(json.dumps([name for name in heavy if name in sys.modules]))
"""
    assert in_new_process(code, PATH=os.environ["PATH"]) == []


def test_work_needs_no_torch(tmp_path):
    code = """
import json, sys
from vlmft.data import Shapes
from vlmft.data.check import check
from vlmft.data.mixture import Mixture, MixturePart
source = Shapes(train_samples=10, eval_samples=10, image_size=28, seed=0).open("shapes")
check([(source, range(10))], 5)
Mixture([MixturePart(source, 1, range(10))], 0).at(0)
print(json.dumps([name for name in ("torch", "transformers", "sklearn", "scipy") if name in sys.modules]))
"""
    assert in_new_process(code, XDG_CACHE_HOME=str(tmp_path)) == []
