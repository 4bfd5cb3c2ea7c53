"""Captions at several granularities: reading them from a record, and drawing one text for each CLS token."""

from __future__ import annotations

import json

import numpy as np

from distill.config.schema import CaptionsConfig
from distill.data.sample import Sample, SampleError
from distill.errors import UserError


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


class CaptionPicker:
    """One text per CLS token: a listed field drawn uniformly, then one of its texts drawn uniformly."""

    def __init__(self, cfg: CaptionsConfig):
        if not cfg.cls1:
            raise UserError("captions.cls1 is empty. Give at least one caption field, for example [web].")
        self.fields = [list(fields) for fields in (cfg.cls1, cfg.cls2) if fields]  # one list per CLS token
        self.fallback = cfg.fallback

    def pick(self, sample: Sample, rng: np.random.Generator) -> list[str]:
        """C texts, one per CLS token. Takes the same number of draws for every sample.

        Raises SampleError when the text drawn is empty or the record has no captions at all, UserError when only the
        field drawn is missing, and so is the fallback.
        """
        draws = rng.random((len(self.fields), 2))  # [C, (field, text)] in [0, 1)
        return [self._one(sample, fields, field, text) for fields, (field, text) in zip(self.fields, draws.tolist())]

    def _one(self, sample: Sample, fields: list[str], field_draw: float, text_draw: float) -> str:
        if not sample.captions:
            raise SampleError(sample.shard, sample.key, "no captions")
        field = fields[int(field_draw * len(fields))]
        texts = sample.captions.get(field)
        if not texts and self.fallback is not None:
            texts = sample.captions.get(self.fallback)
        if not texts:
            raise self._missing(sample, field)
        text = texts[int(text_draw * len(texts))].strip()
        if not text:
            raise SampleError(sample.shard, sample.key, f"empty caption (field '{field}')")
        return text

    def _missing(self, sample: Sample, field: str) -> UserError:
        found = ", ".join(sorted(sample.captions)) or "none"
        tried = f"'{field}'" + (f" nor fallback '{self.fallback}'" if self.fallback else "")
        return UserError(
            f"{sample.shard}: {sample.key}: no caption field {tried}. Fields found: {found}. "
            "Set captions.cls1, captions.cls2 or captions.fallback to fields that every sample has."
        )
