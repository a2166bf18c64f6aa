"""Classification heads in saved models: `head.safetensors`, and what its folder's JSON says of it."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmft.config.spec import validate
from vlmft.errors import ConfigError, StorageError
from vlmft.models.heads import HeadSpec
from vlmft.recipes.dtypes import torch_dtype
from vlmft.recipes.saved import CLASSIFIER, PROVENANCE, open_saved, read_weights, saved_folder
from vlmft.types import Classes

if TYPE_CHECKING:
    import torch

    from vlmft.models.classifier import Classifier, Head

MERGED = "classifier.json"
"""What a merged model has in its stead."""
_WEIGHTS = "head.safetensors"


@dataclass(frozen=True)
class HeadRecord:
    """What a folder says of the head in it."""

    head: HeadSpec
    classes: Classes
    hidden_size: int
    threshold: float
    """Of several labels: the least probability of a predicted class."""

    def to_json(self) -> dict[str, Any]:
        """The plain mapping that `of` reads."""
        return {
            "classes": list(self.classes.names),
            "multi_label": self.classes.multi,
            "threshold": self.threshold,
            "hidden_size": self.hidden_size,
            "head": self.head.to_config(),
        }

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "HeadRecord":
        """Read what `to_json` gave."""
        classes = Classes(tuple(found["classes"]), found["multi_label"])
        return cls(validate(HeadSpec, found["head"]), classes, found["hidden_size"], found["threshold"])


def save_head(folder: Path, head: "Head") -> None:
    """Write the head's weights into a saved model's folder. Raises `StorageError` where that fails."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    weights = {name: weight.detach().cpu().contiguous() for name, weight in head.state_dict().items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{folder}: cannot be written: {error}") from error


def load_head(folder: Path, record: HeadRecord) -> "Head":
    """The head in `folder`, on the CPU. Raises `ConfigError` where a weight is missing or unexpected."""
    from vlmft.models.classifier import Head

    head = Head(record.head, record.hidden_size, len(record.classes.names))
    head.load_state_dict(dict(read_weights(folder / _WEIGHTS, head.state_dict())))
    return head


def load_earlier_head(path: str | Path, head: "Head", spec: HeadSpec, classes: Classes) -> None:
    """Give `head` the weights of an earlier classification's; an earlier run of another trainer has none.

    Raises:
        ConfigError: it was trained for other classes, or is another head.
    """
    folder = saved_folder(path)
    found = json.loads((folder / PROVENANCE).read_text()).get(CLASSIFIER)
    if found is None:
        return
    record = HeadRecord.of(found)
    if record.classes != classes or record.head.widths != spec.widths:
        raise ConfigError(
            f"model.adapter: {folder} holds a head for {', '.join(record.classes.names)}, hidden layers "
            f"{list(record.head.widths)}; this run's is for {', '.join(classes.names)}, hidden layers "
            f"{list(spec.widths)}: take the same classes and trainer/head, or begin from another run"
        )
    head.load_state_dict(load_head(folder, record).state_dict())


def copy_head(source: Path, record: Mapping[str, Any], out: Path) -> bool:
    """Put the head of a saved model, where it has one, into the folder of its merged model; whether there was one.

    Args:
        record: of `source`, its vlmft.json.
    """
    if CLASSIFIER not in record:
        return False
    shutil.copyfile(source / _WEIGHTS, out / _WEIGHTS)
    (out / MERGED).write_text(json.dumps(record[CLASSIFIER], indent=2) + "\n", encoding="utf-8")
    return True


def load_classifier(
    path: str | Path, device: "str | torch.device" = "cpu", *, trust_remote_code: bool = False
) -> tuple["Classifier", Any, Classes]:
    """Load what a run with trainer=classification saved, or what was merged of it, ready to predict.

    Args:
        path: a run folder, its `final` folder, or a merged folder.
        device, trust_remote_code: as of `load`.

    Returns:
        (model, processor, classes), the model in eval mode: `model(**inputs)` gives the logits of the classes, for
        inputs whose padding stands on the right and which end where the model is to answer.

    Raises:
        ConfigError: as `load`; or the folder holds no head.
    """
    from vlmft.models.classifier import Classifier

    plain = Path(path).expanduser()
    if (plain / MERGED).is_file():
        model, processor = _load_merged(plain, device, trust_remote_code)
        folder, found, dtype = plain, json.loads((plain / MERGED).read_text()), model.dtype
    else:
        saved = open_saved(path, trust_remote_code)
        if CLASSIFIER not in saved.record:
            raise ConfigError(f"{saved.folder}: holds no classification head; load it with vlmft.load")
        model, processor = saved.load(device)
        folder, found, dtype = saved.folder, saved.record[CLASSIFIER], torch_dtype(saved.precision)
    record = HeadRecord.of(found)
    head = load_head(folder, record).to(device)
    classifier = Classifier(model, head, record.head.pooling, dtype).requires_grad_(False).eval()
    return classifier, processor, record.classes


def _load_merged(folder: Path, device: "str | torch.device", trust_remote_code: bool) -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype="auto", use_safetensors=True, trust_remote_code=trust_remote_code
    )
    return model.to(device), AutoProcessor.from_pretrained(folder, trust_remote_code=trust_remote_code)
