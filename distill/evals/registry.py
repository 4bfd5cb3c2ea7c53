"""The tasks there are. A new task is a file with a `Task`, a line here, and its name in the choices of `eval.tasks`."""

from __future__ import annotations

from distill.errors import unknown
from distill.evals.depth import Depth
from distill.evals.instance import InstanceRetrieval
from distill.evals.knn import NearestNeighbours
from distill.evals.linear_cls import LinearClassification
from distill.evals.linear_patch import PatchProbe
from distill.evals.linear_seg import LinearSegmentation
from distill.evals.locality import Locality
from distill.evals.normals import SurfaceNormals
from distill.evals.retrieval import Retrieval
from distill.evals.task import Task
from distill.evals.zeroshot_cls import ZeroShotClassification
from distill.evals.zeroshot_seg import ZeroShotSegmentation

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        ZeroShotSegmentation,
        ZeroShotClassification,
        Retrieval,
        NearestNeighbours,
        PatchProbe,
        Locality,
        LinearClassification,
        LinearSegmentation,
        Depth,
        SurfaceNormals,
        InstanceRetrieval,
    )
}


def find_task(name: str) -> type[Task]:
    """The task of that name; UserError with the nearest name for one that does not exist."""
    if name not in TASKS:
        raise unknown("task", name, TASKS)
    return TASKS[name]
