from __future__ import annotations

import json

import pytest

from distill.errors import UserError
from distill.models.tokenizers import load_tokenizer
from distill.models.tokenizers.clip import ClipTokenizer


@pytest.fixture(scope="module", name="tokenizer")
def _tokenizer() -> ClipTokenizer:
    return ClipTokenizer()


def test_known_ids_of_the_published_vocabulary(tokenizer):
    ids, valid, cut = tokenizer.encode(["A photo of a cat"], 9)
    assert ids.tolist() == [[49406, 320, 1125, 539, 320, 2368, 49407, 0, 0]]
    assert valid.sum() == 7
    assert cut == 0
    assert tokenizer.vocabulary == 49408


def test_a_cut_text_still_ends_with_the_end_token(tokenizer):
    ids, valid, cut = tokenizer.encode(["a photo of a cat", "cat"], 4)
    assert ids.tolist() == [[49406, 320, 1125, 49407], [49406, 2368, 49407, 0]]
    assert valid.all(axis=1).tolist() == [True, False]
    assert cut == 1


def test_empty_text_and_state(tokenizer):
    with pytest.raises(UserError, match="Text 0 is empty"):
        tokenizer.encode([" "], 8)
    again = load_tokenizer(json.loads(json.dumps(tokenizer.state())))
    assert again.encode(["two dogs"], 6).ids.tolist() == tokenizer.encode(["two dogs"], 6).ids.tolist()
