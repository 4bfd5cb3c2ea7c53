"""The columns of a study's tables: which metric, what it is called, how it is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One number of a row. `key` is `task/metric`, or `cost/NAME`; shown as value x `scale` with `digits`."""

    key: str
    group: str  # heading over neighbouring columns
    title: str
    short: str  # heading in a terminal
    scale: float = 100.0
    digits: int = 1
    unit: str = ""
    higher_is_better: bool | None = True  # None: neither
    otherwise: str | None = None  # the key for a model that lacks the first, such as one with a single CLS token

    def better(self, change: float) -> bool | None:
        """Whether a change of the value is for the better; None where more is neither better nor worse."""
        return None if self.higher_is_better is None else (change > 0) == self.higher_is_better


SEGMENTATION = "Zero-shot segmentation, mIoU %"
PROBES = "Accuracy, %"
LOCALITY = "Final patch tokens, %"
RETRIEVAL = "Retrieval, recall@1 %"
DEPTH = "Depth, RMSE"
COST = "Cost"
LOSS = "Patch loss at the end of training"
CHANGE = "Change of the patch loss over training"

COLUMNS = (
    Column("zeroshot_seg/miou_final", SEGMENTATION, "final tokens", "mIoU final"),
    Column("zeroshot_seg/miou_value", SEGMENTATION, "value path", "mIoU value"),
    Column("linear_patch/accuracy", PROBES, "patch linear probe", "probe"),
    Column("knn/top1_cls1", PROBES, "k-NN", "k-NN"),
    Column("retrieval/i2t_r1_both", RETRIEVAL, "image to text", "R@1 i→t", otherwise="retrieval/i2t_r1_cls1"),
    Column("retrieval/t2i_r1_both", RETRIEVAL, "text to image", "R@1 t→i", otherwise="retrieval/t2i_r1_cls1"),
    Column("depth/rmse", DEPTH, "linear probe", "depth", 1, 3, higher_is_better=False),
    Column("locality/class_share_final", LOCALITY, "explained by their class", "class share", higher_is_better=None),
    Column("locality/global_share_final", LOCALITY, "in common with the image", "global share", higher_is_better=None),
    Column("cost/parameters", COST, "parameters", "params", 1e-6, 2, " M", None),
    Column("cost/held", COST, "held in training", "held", 1e-6, 2, " M", None),
    Column("cost/step_ms", COST, "step", "step", 1, 0, " ms", False),
    Column("cost/peak_memory_mb", COST, "peak memory", "memory", 1, 0, " MB", False),
    Column("cost/train_seconds", COST, "training", "training", 1 / 60, 1, " min", False),
    Column("cost/teacher_forwards", COST, "images through the teacher", "teacher", 1e-3, 0, " k", None),
)
SCORES = tuple(column for column in COLUMNS if column.group != COST)
COSTS = tuple(column for column in COLUMNS if column.group == COST)
CLAIMED = (  # what claims may also speak of
    Column("train/patch_visible", LOSS, "visible tokens", "visible loss", 1, 3, "", None),
    Column("train/patch_masked", LOSS, "masked tokens", "masked loss", 1, 3, "", None),
    Column("train/patch_visible_change", CHANGE, "visible tokens", "visible change", 1, 3, "", None),
    Column("train/patch_masked_change", CHANGE, "masked tokens", "masked change", 1, 3, "", None),
)
CHANCE = {  # what guessing gets, by column
    "zeroshot_seg/miou_final": "zeroshot_seg/miou_chance",
    "zeroshot_seg/miou_value": "zeroshot_seg/miou_chance",
    "linear_patch/accuracy": "linear_patch/accuracy_constant",
    "knn/top1_cls1": "knn/top1_constant",
    "retrieval/i2t_r1_both": "retrieval/chance_i2t_r1",
    "retrieval/t2i_r1_both": "retrieval/chance_t2i_r1",
    "depth/rmse": "depth/rmse_constant",
}


def show(column: Column, value: float | None, half: float | None = None, sign: bool = False) -> str:
    """`12.3`, `12.3 ± 0.4`, `0.52 M`, or `+1.2` with `sign`; a dash where there is nothing."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value * column.scale:{'+' if sign else ''}.{column.digits}f}".replace("-", "−")
    if half is not None:
        text += f" ± {half * column.scale:.{column.digits}f}"
    return text + column.unit
