"""What `model=auto` has to prove before a run goes on; of a family of vlmft's own, tests hold it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlmft.data.run_data import RunData
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoder, as_conversation
from vlmft.errors import VlmftError
from vlmft.models import Auto
from vlmft.training.ranks import rank
from vlmft.types import Sample

if TYPE_CHECKING:
    from vlmft.train import TrainConfig

_PROVEN = 4  # samples of the run on which model=auto is proven
_FP32_ALIKE = 1e-3  # share of logits by which two ways to compute the same may differ; tiny models: below 1e-6
_STEPS_ALIKE = 8  # below fp32, in steps of the precision; tiny models in bf16: up to 1.7, 32 random layers 4.7


def prove_encoding(config: "TrainConfig", data: RunData, encoder: Encoder, collator: Collator) -> list[Sample]:
    """Prove on the first samples that they are encoded as is official.

    Returns:
        The samples; none where there is nothing to prove, or another rank proves it.

    Raises:
        ConfigError: the checkpoint cannot be taken; says what failed, and the family to use instead.
    """
    from vlmft.encoding.loading import Watch, encode_group
    from vlmft.encoding.proof import prove_encoding as prove
    from vlmft.previewing.visits import first

    if not isinstance(config.model, Auto) or rank() != 0:
        return []
    _ = config.model.anatomy  # refused before anything is loaded
    visits = first(data, 2 * _PROVEN)
    samples = [as_conversation(visit.found) for visit in visits if isinstance(visit.found, Sample)]
    plain = Encoder(config.model, encoder.processor, encoder.max_tokens, encoder.time_limit)
    group = encode_group(plain, 0, samples, plain.encode, lambda sample: sample.id, Watch())
    if isinstance(group, VlmftError):
        raise group
    usable = [sample for sample in samples if sample.id not in group.bad][:_PROVEN]  # bad ones have their own bound
    prove(Encoder(config.model, encoder.processor), collator, usable, config.model.refused)
    return usable


def prove_model(
    config: "TrainConfig", model: Any, encoder: Encoder, collator: Collator, samples: Sequence[Sample]
) -> list[str]:
    """Prove the model's half on `samples`; return what was found and proven, in lines for people.

    Raises:
        ConfigError: as `prove_encoding`.
    """
    import torch

    from vlmft.encoding.model_proof import prove_model as prove
    from vlmft.recipes.dtypes import torch_dtype

    family = config.model
    if not isinstance(family, Auto) or rank() != 0:
        return []
    dtype = torch_dtype(config.precision)
    tolerance = _FP32_ALIKE if dtype == torch.float32 else _STEPS_ALIKE * torch.finfo(dtype).eps
    unbounded = Encoder(family, encoder.processor)
    proven = prove(model, unbounded, collator, samples, family.refused, tolerance, config.batching.max_tokens)
    return [*family.anatomy.describe(), proven]
