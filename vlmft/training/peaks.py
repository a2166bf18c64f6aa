"""The peak rates of GPUs in 16-bit matrix products, for MFU and for a plan's hours."""

import re

PEAK_TFLOPS: dict[str, float] = {
    "B200": 2250.0,
    "H200 NVL": 835.5,
    "H200": 989.4,
    "GH200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "H100": 989.4,
    "A100": 312.0,
    "A800": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "A40": 149.7,
    "A10": 125.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "RTX A6000": 154.8,
    "V100": 125.0,
    "T4": 65.0,
}
"""TFLOP/s with float32 sums and without sparsity, of NVIDIA's data sheets and architecture white papers; the SXM form
where a name has several. bf16, and fp16 where a GPU has no bf16 (V100, T4)."""


_SLOWER = re.compile(r"\b(laptop|mig)\b", re.IGNORECASE)
"""Words of a GPU that is less than the one whose name it bears."""


def peak_tflops(name: str) -> float | None:
    """The peak of the GPU that torch calls `name`, or that a user calls so in short; None where it is not known.

    Of the table's names that stand in `name` as whole words, the longest counts. A laptop's GPU is not known, nor
    is a part of one (MIG).
    """
    if _SLOWER.search(name):
        return None
    found = [known for known in PEAK_TFLOPS if re.search(rf"(?<!\w){re.escape(known)}(?!\w)", name, re.IGNORECASE)]
    if not found:
        found = [known for known in PEAK_TFLOPS if known.lower().removeprefix("rtx ") == name.lower().strip()]
    return PEAK_TFLOPS[max(found, key=len)] if found else None
