from pathlib import Path

import pytest
import yaml

from vlmft.config.spec import validate
from vlmft.data import DatasetSpec

_ENTRIES = yaml.safe_load((Path(__file__).parents[2] / "registry" / "datasets" / "demo.yaml").read_text())


@pytest.mark.parametrize("name", _ENTRIES)
def test_the_shipped_entries_are_valid(name):
    spec = validate(DatasetSpec, _ENTRIES[name])
    required = {key for key, field in type(spec).model_fields.items() if field.is_required()}
    assert required <= set(_ENTRIES[name]), "an entry's values stand in the registry, not in the class"
