"""Released DPT heads: which file holds what, and reading them into a `DptHead`.

Read are the published PyTorch files (npz; the `..._dpt_pytorch.zip` are such), with flat names (`reassemble. ...`,
`pixel_depth_classif.weight`) or under `dpt.` and `head.`, and safetensors files of whole models, where a head's names
start with `depth_head.` or `normals_head.`. Nothing in a file is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError
from distill.evals.dpt import CHANNELS, DptHead

LAST_LAYER = {  # what files call the last linear layer, by task
    "depth": ("head.", "pixel_depth_classif.", "depth_head."),
    "normals": ("head.", "pixel_normals.", "normals_head."),
}
BODY = ("reassemble.", "convs.", "fusion_blocks.", "project.")
SHOWN = 3  # first mismatches named in an error


def load_head(path: str | Path, task: str, width: int, outputs: int) -> DptHead:
    """The head for `task` (depth or normals) of an encoder with `width` channels, in evaluation mode.

    Raises UserError for a file that is missing, unreadable or of another kind, and for other names or shapes than those
    of such a head, naming the first.
    """
    path = Path(path).expanduser()
    weights = _named(read_arrays(path), task)
    if not weights:
        raise UserError(f"{path} holds no DPT head for {task}. Give the {task} file of the PyTorch release.")
    channels = len(weights["project.weight"]) if "project.weight" in weights else CHANNELS
    head = DptHead(width, outputs, channels=channels, relu=task == "depth")
    wrong = _mismatches(head.state_dict(), weights)
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise UserError(
            f"{path} does not fit an encoder of width {width}: {'; '.join(wrong[:SHOWN])}{more}. "
            f"Give the {task} head of this encoder's size."
        )
    head.load_state_dict(weights)
    return head.eval()


def read_arrays(path: Path) -> dict[str, Tensor]:
    """All arrays of an npz, zip or safetensors file, by name, float32. UserError for another or a damaged file."""
    if not path.is_file():
        raise UserError(f"No file {path}. Give a released DPT head (.npz, .zip or .safetensors).")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            arrays: dict[str, Tensor] = load_file(path)
        else:
            with np.load(path, allow_pickle=False) as content:
                arrays = {name: torch.from_numpy(np.asarray(content[name])) for name in content.files}
        return {name: tensor.float() for name, tensor in arrays.items()}
    except Exception as error:  # both readers raise many types for a damaged or foreign file
        raise UserError(
            f"Cannot read {path}: it is damaged, or no npz, zip of arrays or safetensors file. Download it again."
        ) from error


def _named(arrays: Mapping[str, Tensor], task: str) -> dict[str, Tensor]:
    """The arrays of the task's head under our names, what does not belong to it left out."""
    ours = {}
    whole = f"{task}_head."  # in files of whole models
    for name, tensor in arrays.items():
        if name.startswith((*(whole + part for part in BODY), whole * 2)):
            name = name.removeprefix(whole)
        name = name.removeprefix("dpt.")
        if name.startswith(BODY):
            ours[name] = tensor
        for prefix in LAST_LAYER[task]:
            if name in (f"{prefix}weight", f"{prefix}bias"):
                ours[f"head.{name.removeprefix(prefix)}"] = tensor
    return ours


def _mismatches(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    wrong = [f"{name} is missing" for name in wanted if name not in found]
    wrong += [f"{name} is not expected" for name in found if name not in wanted]
    for name, tensor in wanted.items():
        if name in found and found[name].shape != tensor.shape:
            wrong.append(f"{name} is {list(found[name].shape)} instead of {list(tensor.shape)}")
        elif name in found and not torch.isfinite(found[name]).all():
            wrong.append(f"{name} holds values that are not finite")
    return wrong
