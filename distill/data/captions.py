"""Captions at several granularities: reading them from a record, and drawing one text for each CLS token."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from distill.config.schema import CaptionsConfig
from distill.data.sample import Sample, SampleError
from distill.errors import UserError

MISSES = 50  # samples without a field, and none with it, that stop a run


def parse_captions(data: bytes, shard: str, key: str) -> dict[str, list[str]]:
    """The caption fields of a record: every key whose value is a string or a non-empty list of strings.

    Other keys (numbers, objects) are left out. Raises SampleError when `data` is not a JSON object.
    """
    try:
        record = json.loads(data)
    except ValueError as error:
        raise SampleError(shard, key, f"bad JSON ({error})") from error
    if not isinstance(record, dict):
        raise SampleError(shard, key, f"bad JSON (an object is expected, not {type(record).__name__})")
    return {field: texts for field, value in record.items() if (texts := as_texts(value))}


def as_texts(value: object) -> list[str]:
    """`[value]` for a string, a copy of a list of strings, else an empty list."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return list(value)
    return []


def caption_fields(cfg: CaptionsConfig) -> list[str]:
    """All fields that a text may be drawn from, the fallback's too; each once."""
    return list(dict.fromkeys([*cfg.cls1, *cfg.cls2, *([cfg.fallback] if cfg.fallback else [])]))


class CaptionPicker:
    """One text per CLS token: a listed field drawn uniformly, then one of its texts drawn uniformly."""

    def __init__(self, cfg: CaptionsConfig):
        if not cfg.cls1:
            raise UserError("captions.cls1 is empty. Give at least one caption field, for example [web].")
        self.fields = [list(fields) for fields in (cfg.cls1, cfg.cls2) if fields]  # one list per CLS token
        self.fallback = cfg.fallback
        self._met: set[str] = set()  # fields that a sample had, or its fallback
        self._missed: Counter[str] = Counter()  # how many samples lacked one that none has had
        self._replaced: Counter[str] = Counter()  # how often the fallback stood for one that no sample had itself
        self._own: set[str] = set()  # fields that a sample had itself

    def pick(self, sample: Sample, rng: np.random.Generator) -> list[str]:
        """C texts, one per CLS token. Takes the same number of draws for every sample.

        Raises SampleError when the sample lacks the field drawn and its fallback, or the text drawn is empty; UserError
        when a field has been missing in MISSES samples and no sample has had it. Warns once where a fallback has stood
        for such a field, as the field's name may be a mistake.
        """
        draws = rng.random((len(self.fields), 2))  # [C, (field, text)] in [0, 1)
        return [self._one(sample, fields, field, text) for fields, (field, text) in zip(self.fields, draws.tolist())]

    def texts(self, captions: Mapping[str, list[str]], field: str) -> list[str]:
        """The texts that stand for `field`: its own, else those of the fallback; empty when there are neither."""
        texts = captions.get(field)
        if not texts and self.fallback is not None:
            texts = captions.get(self.fallback)
        return texts or []

    def chance(self, captions: Mapping[str, list[str]]) -> float:
        """How likely a draw gives every CLS token a text that is not empty."""
        found = 1.0
        for fields in self.fields:
            found *= sum(_share_with_words(self.texts(captions, field)) for field in fields) / len(fields)
        return found

    def _one(self, sample: Sample, fields: list[str], field_draw: float, text_draw: float) -> str:
        if not sample.captions:
            raise SampleError(sample.shard, sample.key, "no captions")
        field = fields[int(field_draw * len(fields))]
        texts = self.texts(sample.captions, field)
        if not texts:
            raise self._missing(sample, field)
        self._met.add(field)
        self._watch_fallback(sample, field)
        text = texts[int(text_draw * len(texts))].strip()
        if not text:
            raise SampleError(sample.shard, sample.key, f"empty caption (field '{field}')")
        return text

    def _watch_fallback(self, sample: Sample, field: str) -> None:
        if sample.captions.get(field):
            self._own.add(field)
        elif field not in self._own:
            self._replaced[field] += 1
            if self._replaced[field] == MISSES:
                found = ", ".join(sorted(sample.captions))
                warnings.warn(
                    f"None of the first {MISSES} samples had the caption field '{field}': captions.fallback="
                    f"{self.fallback} stood for it (fields found: {found}).",
                    stacklevel=2,
                )

    def _missing(self, sample: Sample, field: str) -> SampleError | UserError:
        found = ", ".join(sorted(sample.captions)) or "none"
        tried = f"'{field}'" + (f" nor fallback '{self.fallback}'" if self.fallback else "")
        self._missed[field] += 1
        if field in self._met or self._missed[field] < MISSES:
            return SampleError(sample.shard, sample.key, f"no caption field {tried} (fields found: {found})")
        return UserError(
            f"{sample.shard}: {sample.key}: no caption field {tried}. Fields found: {found}. "
            "Set captions.cls1, captions.cls2 or captions.fallback to fields that every sample has."
        )


def _share_with_words(texts: Sequence[str]) -> float:
    return sum(bool(text.strip()) for text in texts) / len(texts) if texts else 0.0
