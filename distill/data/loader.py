"""Batches for training: which samples, in which order, made by which process.

Micro-batch m = step * accumulate + a of a run holds the samples drawn m * b ... (m + 1) * b - 1, with b = batch /
accumulate, split over the ranks into equal runs of neighbours. Each loader process makes whole micro-batches, in turn.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from distill.config.schema import Config
from distill.data.decoders import PILLOW, choose_decoder
from distill.data.failures import Failures as Failures  # callers of `build_loader` need it
from distill.data.order import Order
from distill.data.sample import Sample, SampleError, Source
from distill.data.shards import ShardSource
from distill.data.slots import SlotFiller
from distill.data.stream import SlotStream, StreamSource, check_shards_vs_workers
from distill.errors import UserError
from distill.views.batch import Batch, Views, collate

if TYPE_CHECKING:
    from distill.models.tokenizers import Tokenizer

RECIPE = ("seed", "train.batch", "data.shuffle", "data.epoch", "data.scenes.seed", "data.scenes.size", "data.shards")
Made = Batch | UserError  # an error a user can act on travels from a loader process as it is


class Loader:
    """The remaining micro-batches of one rank, once through. Give each to `Failures.add`, which judges the losses."""

    def __init__(self, batches: DataLoader, count: int, state: dict[str, Any]):
        self.batches, self.count = batches, count
        self.state = state  # what a resumed run must agree on; goes into the checkpoint

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Batch]:
        """Raises UserError for a caption field that no sample has, unreadable data, or a loader process that died."""
        made: Iterator[Made] = iter(self.batches)
        try:
            while True:
                batch = self._next(made)
                if batch is None:
                    return
                yield batch
        finally:
            # ends the loader processes now: left to garbage collection after an error, each would be waited for in vain
            end = getattr(made, "_shutdown_workers", None)
            if end is not None:
                end()

    def _next(self, made: Iterator[Made]) -> Batch | None:
        try:
            batch = next(made, None)
        except (RuntimeError, EOFError, ConnectionError) as error:  # the last two: its pipe broke before it was missed
            text = (str(error).splitlines() or ["its pipe broke"])[0]
            if self.batches.num_workers and (
                text.startswith("DataLoader worker") or not isinstance(error, RuntimeError)
            ):
                raise UserError(
                    f"A loader process died ({text}), most often for want of memory. Lower "
                    "data.workers or train.batch, or give a container more shared memory (--shm-size)."
                ) from error
            raise
        if isinstance(batch, UserError):
            raise batch
        return batch


def build_loader(
    source: Source | StreamSource,
    cfg: Config,
    tokenizer: Tokenizer,
    *,
    grid: tuple[int, int],
    start_step: int = 0,
    rank: int = 0,
    world: int = 1,
    state: dict[str, Any] | None = None,
) -> Loader:
    """The micro-batches from `start_step` to `cfg.train.steps` for one rank: (steps - start_step) * accumulate of them.

    `grid`: rows and columns of the student's patches in the global crop. `state`: the `Loader.state` kept in the
    checkpoint that is resumed. The batches are the same, bit by bit, for any number of workers, and their union over
    ranks for any number of ranks, when the source has an index; a stream needs both unchanged. Raises UserError.
    """
    size = rank_batch(cfg, world)
    filler = SlotFiller(cfg, tokenizer, grid)
    first, last = start_step * cfg.train.accumulate, cfg.train.steps * cfg.train.accumulate
    here = describe(source, cfg, world)
    if state is not None:
        check_resumable(state, here)
    if isinstance(source, StreamSource):
        check_shards_vs_workers(len(source.shards), cfg.data.workers, world)
        batches = _loader(StreamBatches(source, filler, cfg, size, rank, world, first, last), cfg, size)
    else:
        order = Order(len(source), cfg.seed, cfg.data.shuffle, cfg.data.epoch, cfg.teacher.cache.repeat)
        indexed = IndexedBatches(source, order, filler, size, rank, world)
        batches = _loader(indexed, cfg, size, sampler=range(first, last))
    return Loader(batches, max(last - first, 0), here)


def rank_batch(cfg: Config, world: int) -> int:
    """Images of one micro-batch on one rank. Raises UserError when the batch does not divide."""
    parts = cfg.train.accumulate * world
    if cfg.train.batch % parts:
        near = max(cfg.train.batch // parts, 1) * parts
        raise UserError(
            f"train.batch is {cfg.train.batch}, but {cfg.train.accumulate} micro-batches x {world} ranks do not divide "
            f"it. Allowed: multiples of {parts}, for example {near}."
        )
    return cfg.train.batch // parts


def describe(source: Source | StreamSource, cfg: Config, world: int) -> dict[str, Any]:
    """What decides which samples come when, and their pixels; a checkpoint holds it."""
    found: dict[str, Any] = {"kind": "indexed", "seed": cfg.seed, "train.batch": cfg.train.batch}
    found |= {"data.shuffle": cfg.data.shuffle, "data.epoch": cfg.data.epoch}
    if cfg.data.source == "scenes":
        found |= {"data.scenes.seed": cfg.data.scenes.seed, "data.scenes.size": cfg.data.scenes.size}
    if isinstance(source, StreamSource):
        workers = max(cfg.data.workers, 1)
        found |= {"kind": "stream", "shards": len(source.shards), "workers": workers, "ranks": world}
    else:
        found["samples"] = len(source)
    if isinstance(source, StreamSource | ShardSource):
        found["data.shards"] = source.identity()
        found["decoder"] = choose_decoder(cfg.data.decoder)
    return found


def check_resumable(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises UserError when the data of a checkpoint (`then`) cannot be continued exactly with what is here (`now`)."""
    if "decoder" in now:
        then = {"decoder": PILLOW, **then}  # the only one when checkpoints did not name it yet
    then = {key: now[key] for key in RECIPE if key in now} | then  # nor did they say these
    changed = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if not changed:
        return
    why, fix = "A stream continues exactly only with the same shards, data.workers and ranks", "Restore them"
    if now["kind"] == "indexed":
        why = "The order of samples depends on them"
    if changed == ["decoder"]:
        why, fix = "Two JPEG decoders may round pixels differently", f"Set data.decoder={then['decoder']}"
    differences = ", ".join(f"{key} {then.get(key)} -> {now.get(key)}" for key in changed)
    raise UserError(
        f"The data cannot be continued exactly: {differences} since the checkpoint. {why}. "
        f"{fix}, or start a new run with train.stage_from."
    )


class IndexedBatches(Dataset):
    """Micro-batch m of one rank, by random access."""

    def __init__(self, source: Source, order: Order, filler: SlotFiller, size: int, rank: int, world: int):
        self.source, self.order, self.filler = source, order, filler
        self.size, self.rank, self.world = size, rank, world

    def __getitem__(self, micro: int) -> Made:
        first = (micro * self.world + self.rank) * self.size
        try:
            slots = [self._slot(number) for number in range(first, first + self.size)]
        except UserError as error:
            return error
        return collate([views for views, _ in slots], [error for _, error in slots if error is not None])

    def _slot(self, number: int) -> tuple[Views, SampleError | None]:
        def candidate(k: int) -> tuple[int, Sample]:
            index = self.order.index(*self.order.split(number + k))
            return index, self.source[index]

        place = self.order.split(number)
        views, error = self.filler.fill(*place, candidate)
        views.view[0] = self.order.row(*place)
        return views, error


class StreamBatches(IterableDataset):
    """The micro-batches of one rank, each loader process making every n-th of them from its own shards."""

    def __init__(
        self,
        source: StreamSource,
        filler: SlotFiller,
        cfg: Config,
        size: int,
        rank: int,
        world: int,
        first: int,
        last: int,
    ):
        self.source, self.filler, self.seed, self.shuffle = source, filler, cfg.seed, cfg.data.shuffle
        self.size, self.rank, self.world, self.first, self.last = size, rank, world, first, last

    def __iter__(self) -> Iterator[Made]:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info else (1, 0)
        # the process asked first makes micro-batch `first`: it takes over the shards of the one whose turn it would be
        turn = (worker + self.first) % workers
        slots = SlotStream(self.source, self.seed, self.shuffle, turn + self.rank * workers, workers * self.world)
        try:
            for micro in range(turn, self.last, workers):
                if micro < self.first:
                    for _ in range(self.size):
                        slots.advance()
                else:
                    yield self._batch(micro, slots)
        except UserError as error:
            yield error

    def _batch(self, micro: int, slots: SlotStream) -> Batch:
        first = (micro * self.world + self.rank) * self.size
        made, errors = [], []
        for number in range(first, first + self.size):
            views, error = self.filler.fill(*divmod(number, self.source.epoch), slots.candidate)
            slots.advance()
            made.append(views)
            errors += [error] if error else []
        return collate(made, errors)


def _loader(dataset: Dataset, cfg: Config, size: int, sampler: range | None = None) -> DataLoader:
    workers = cfg.data.workers
    return DataLoader(
        dataset,
        batch_size=None,  # the dataset makes whole batches
        sampler=sampler,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=cfg.train.accelerator != "cpu" and torch.cuda.is_available(),
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # its own: making an iterator draws a seed, which must not move training's state
        prefetch_factor=(4 if size < 256 else 2) if workers else None,
    )


def _as_it_is(made: Any) -> Any:
    return made


def _start_worker(worker: int) -> None:
    """One thread per process; Ctrl-C is left to the training process, which then ends this one."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the training process's own handler
