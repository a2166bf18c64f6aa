"""From JPEG files to a batch on one core: vlmft's loader beside the official processor behind a plain DataLoader.

Pictures of 0.3 to 12 megapixels, generated once, quality 90, two kinds of chroma subsampling; Qwen2.5-VL's processor at
the budget of conf/model/qwen25vl.yaml; 4 samples a batch with one picture each, encoded in one loader process whose
threads are held to one core. Both sides read the same samples in turns, several times. What comes out is compared
first: the ids, and every pixel after the last step, bit for bit.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: one core each

import numpy as np
import PIL.Image
import torch
from common import Spread, provenance, show, write_result
from torch.utils.data import DataLoader

from vlmft.config.app import run_app
from vlmft.data import LLaVADataset
from vlmft.data.mixture import Mixture, MixturePart
from vlmft.encoding.collate import Collator
from vlmft.encoding.encoder import Encoded, Encoder
from vlmft.encoding.loading import load
from vlmft.train import TrainConfig
from vlmft.training.step_plan import StepPlan
from vlmft.training.steps import StepDataset

BOUND = 2.0
BATCH = 4
MEGAPIXELS = (0.3, 0.5, 0.9, 2.1, 2.1, 3.1, 5.0, 8.3, 12.2)
# The mid-size picture of a phone or the web: most are small.
WEIGHTS = (4, 4, 6, 6, 4, 4, 2, 1, 1)


def main() -> int:
    """Measure, print, write benchmarks/results/images.json; return 1 where vlmft is not fast enough."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="2 rounds over few pictures, and no result file")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    made = provenance()
    with tempfile.TemporaryDirectory() as folder:
        count = write_samples(Path(folder), 8 if options.quick else 64)
        sides = Sides(Path(folder))
        sides.compare()
        rates: dict[str, list[float]] = {"official": [], "vlmft": []}
        for number in range((2 if options.quick else options.rounds) + 1):
            for name, batches in (("official", sides.official), ("vlmft", sides.vlmft)):
                start = time.perf_counter()
                assert sum(1 for _ in batches()) == -(-count // BATCH)
                if number:  # the first fills the disk's cache
                    rates[name].append(count / (time.perf_counter() - start))
    official, vlmft = (Spread.of(found) for found in rates.values())
    ratio = Spread.of([ours / theirs for ours, theirs in zip(rates["vlmft"], rates["official"], strict=True)])
    show(
        f"samples a second on one core, {count} pictures of 0.3 to 12 megapixels",
        ("", "median", "p10 to p90", "mean"),
        [
            ("official processor, DataLoader", *official.cells()),
            ("vlmft", *vlmft.cells()),
            ("ratio, round by round", *ratio.cells()),
        ],
        [f"equal to the bit; at least {BOUND:g} times is asked for"],
    )
    if not options.quick:
        write_result(
            "images",
            {
                "command": "python benchmarks/images.py",
                "unit": "samples/s",
                "pictures": count,
                "megapixels": dict(zip(map(str, MEGAPIXELS), WEIGHTS, strict=False)),
                "batch": BATCH,
                "official": official,
                "vlmft": vlmft,
                "ratio": ratio,
                "bound": BOUND,
                "bit_exact": True,
            },
            made,
        )
    return int(ratio.median < BOUND)


def write_samples(folder: Path, count: int) -> int:
    """Write JPEG files of photographic statistics and a LLaVA file; return how many samples."""
    rng = np.random.default_rng(0)
    sizes = rng.choice(len(MEGAPIXELS), count, p=np.array(WEIGHTS) / sum(WEIGHTS))
    rows = []
    for number, size in enumerate(sizes):
        width = round((MEGAPIXELS[size] * 1e6 * 4 / 3) ** 0.5)
        height = round(width * 3 / 4)
        # Coarse noise enlarged, fine noise on top: about the bytes of a photograph.
        coarse = rng.integers(0, 256, (height // 32 + 1, width // 32 + 1, 3), dtype=np.uint8)
        picture = PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC)
        fine = rng.normal(0, 6, (height, width, 1))
        pixels = np.clip(np.asarray(picture) + fine, 0, 255).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=90, subsampling=number % 2 * 2)
        turns = [{"from": "human", "value": "<image>\nWhat is seen here?"}, {"from": "gpt", "value": "A picture."}]
        rows.append({"id": str(number), "image": f"{number}.jpg", "conversations": turns})
    (folder / "dataset.json").write_text(json.dumps(rows))
    return count


class Sides:
    """The two ways from the same samples to batches."""

    def __init__(self, folder: Path) -> None:
        found: list[TrainConfig] = []
        budget = ["model.image.max_pixels=1003520", "batching.max_tokens=32768"]
        if run_app("train", TrainConfig, lambda config, _: found.append(config) or 0, argv=budget):
            raise SystemExit(2)
        self.config = found[0]
        self.family = self.config.model
        self.processor = self.family.load_processor()
        source = LLaVADataset(data_path=folder / "dataset.json").open("pictures")
        self.samples = [source[row] for row in range(len(source))]
        self.encoder = Encoder(self.family, self.processor, self.config.batching.max_tokens)
        self.collator = Collator(self.family, self.processor)
        plan = StepPlan.derive(len(source), BATCH, 1.0, None, world_size=1)
        mixture = Mixture([MixturePart(source, 1, range(len(source)))], seed=0)
        self.steps = StepDataset(mixture, self.encoder, plan, rank=0)

    def official(self) -> Any:
        """The processor behind a DataLoader: Pillow decodes, the processor makes floats, they cross the border."""
        return DataLoader(self.samples, batch_size=BATCH, num_workers=1, collate_fn=self._processed)  # type: ignore[arg-type]

    def vlmft(self) -> Any:
        """vlmft's loader; pixels cross the border as bytes, and become floats where the model is."""
        return load(self.steps, num_workers=1)

    def compare(self) -> None:
        """Fail where the two do not give the same ids and pixels."""
        for sample in self.samples[:6]:
            official = self._processed([sample])
            encoded = self.encoder.encode(sample)
            assert isinstance(encoded, Encoded)
            batch = self.collator([encoded])
            ours = self.family.model_inputs(self.processor, batch.inputs)
            assert torch.equal(official["pixel_values"], ours["pixel_values"])
            assert torch.equal(official["image_grid_thw"], ours["image_grid_thw"])
            assert official["input_ids"][0].tolist() == ours["input_ids"][0].tolist()

    def _processed(self, samples: list[Any]) -> Any:
        torch.set_num_threads(1)
        texts = []
        for sample in samples:
            content = [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                for part in sample.messages[0].parts
            ]
            turns = [{"role": "user", "content": content}, {"role": "assistant", "content": sample.messages[1].text}]
            texts.append(self.processor.apply_chat_template(turns, tokenize=False))
        pictures = [PIL.Image.open(sample.images[0].path).convert("RGB") for sample in samples]
        return dict(self.processor(text=texts, images=pictures, padding=True, return_tensors="pt"))


if __name__ == "__main__":
    sys.exit(main())
