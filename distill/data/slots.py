"""Filling one place of a batch: caption, crops, mask and tokens of one sample, drawn by (seed, epoch, position)."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from distill.config.schema import Config
from distill.data.captions import CaptionPicker
from distill.data.decode import Picture
from distill.data.decoders import choose_decoder
from distill.data.order import CAPTION, CROPS, MASK, keyed_rng
from distill.data.sample import Sample, SampleError
from distill.errors import UserError
from distill.views.batch import Views
from distill.views.crops import Crops, apply_crops, draw_crops
from distill.views.masks import draw_mask

if TYPE_CHECKING:
    from distill.models.tokenizers import Tokenizer

TRIES = 100  # samples in a row that may be unreadable


class SlotFiller:
    """Makes `Views` of samples. `grid` is the (rows, columns) of the student's patches in the global crop."""

    def __init__(self, cfg: Config, tokenizer: Tokenizer, grid: tuple[int, int]):
        self.seed, self.grid, self.repeat = cfg.seed, grid, cfg.teacher.cache.repeat
        self.views, self.mask, self.context = cfg.views, cfg.mask, cfg.text.context
        self.picker = CaptionPicker(cfg.captions)
        self.contrast = cfg.objective.contrastive.weight != 0  # nothing else reads a caption
        self.tokenizer = tokenizer
        self.decoder = choose_decoder(cfg.data.decoder)

    def fill(
        self, epoch: int, position: int, candidate: Callable[[int], tuple[int, Sample]]
    ) -> tuple[Views, SampleError | None]:
        """The views for a place, and why its own sample could not be used, if so.

        `candidate(k)` gives `(index, sample)` of the k-th choice or raises SampleError: 0 is the place's own sample,
        then those that follow it. The draws belong to the place, so a replacement changes nobody else's.

        Raises UserError when 100 candidates in a row fail.
        """
        first: SampleError | None = None
        for k in range(TRIES):
            try:
                index, sample = candidate(k)
                return self.make(index, sample, epoch, position), first
            except SampleError as error:
                first = first or error
        raise UserError(f"{TRIES} samples in a row could not be used. First: {first}. Check data.shards.")

    def make(self, index: int, sample: Sample, epoch: int, position: int) -> Views:
        """The views of `sample`. Raises SampleError when its image is corrupt or the caption drawn has no words."""
        key = (self.seed, epoch, position)
        texts = self.picker.pick(sample, keyed_rng(CAPTION, *key)) if self.contrast else None
        picture = Picture(sample, self.decoder)
        crops = draw_crops(picture.size, self.views, keyed_rng(CROPS, *self._crops_of(epoch, position)))
        global_, local = apply_crops(picture.decode(crops.least_scale()), crops)
        mask = draw_mask(self.grid, self.mask.ratio, self.mask.kind, keyed_rng(MASK, *key))
        tokens, valid, cut = self._tokens(sample, texts)
        return Views(global_, local, mask, tokens, valid, index, cut, self._view(index, sample, crops))

    def _tokens(self, sample: Sample, texts: list[str] | None) -> tuple[np.ndarray, np.ndarray, int]:
        """`(tokens, valid)`, `[C, L]` each, and how many texts were cut; all padding where there is no contrast."""
        if texts is None:
            shape = len(self.picker.fields), self.context
            return np.zeros(shape, np.int64), np.zeros(shape, bool), 0
        try:
            return self.tokenizer.encode(texts, self.context)
        except UserError as error:  # nothing in the caption is a word
            raise SampleError(sample.shard, sample.key, f"caption without words ({error})") from error

    def _crops_of(self, epoch: int, position: int) -> tuple[int, int, int]:
        """What crops and flips depend on: where views repeat, those of epoch e are those of e mod `repeat`."""
        return self.seed, epoch if self.repeat is None else epoch % self.repeat, position

    def _view(self, index: int, sample: Sample, crops: Crops) -> np.ndarray:
        """The global view's identity, see `VIEW`; the checksum is left at 0 where nothing is kept by it."""
        picture = 0
        if self.repeat is not None:
            raw = sample.image if isinstance(sample.image, bytes) else np.ascontiguousarray(sample.image).data
            picture = zlib.crc32(raw)
        return np.array([-1, index, picture, *crops.boxes[0], crops.flips[0]], dtype=np.int64)
