"""A batch that holds every modality a family supports, for questions about the model rather than the data."""

import tempfile
from pathlib import Path

from vlmft.encoding.collate import Batch, Collator
from vlmft.encoding.encoder import Encoder
from vlmft.types import Image, Message, Sample


def probe_batch(encoder: Encoder, collator: Collator) -> Batch:
    """One conversation about a picture of noise, with an answer."""
    import numpy as np
    import PIL.Image

    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise.png"
        PIL.Image.fromarray(noise).save(path)
        question = Message("user", (Image(path), "What is in the picture?"))
        sample = Sample(id="probe", messages=(question, Message("assistant", ("Noise.",))))
        return collator([encoder.encode(sample)])
