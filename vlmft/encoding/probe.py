"""A sample that holds every modality a family supports, for questions about the model rather than the data."""

import tempfile
from pathlib import Path

from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.types import Image, Media, Message, Sample, Video


def probe_sample(encoder: Encoder) -> Encoded:
    """One conversation about a picture and, where the family takes one, a video of noise, with an answer."""
    import numpy as np
    import PIL.Image

    noise = np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"noise-{number}.png" for number in range(len(noise))]
        for path, pixels in zip(paths, noise, strict=True):
            PIL.Image.fromarray(pixels).save(path)
        media: tuple[Media, ...] = (Image(paths[0]),)
        if "video" in encoder.family.placeholders(encoder.processor):
            media += (Video(Path(folder), tuple(paths[1:]), fps=2.0),)
        question = Message("user", (*media, "What is seen here?"))
        sample = Sample(id="probe", messages=(question, Message("assistant", ("Noise.",))))
        return Encoder(encoder.family, encoder.processor).encode(sample)  # whatever the run itself learns from
