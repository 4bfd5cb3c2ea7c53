from __future__ import annotations

import json
import random
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.models.tokenizers import load_tokenizer
from distill.models.tokenizers.words import WordsTokenizer, split

CAPTIONS = ["A red disc, a wall.", "a Red wall", "a blue disc"]


def test_frequent_words_first_and_ties_alphabetical():
    assert WordsTokenizer.train(CAPTIONS, 100).words == ["a", "disc", "red", "wall", ",", ".", "blue"]


def test_vocabulary_counts_the_specials():
    tokenizer = WordsTokenizer.train(CAPTIONS, 5)
    assert tokenizer.words == ["a", "disc", "red"]
    assert tokenizer.vocabulary == 5
    assert tokenizer.encode(["blue wall red"], 4).ids.tolist() == [[1, 1, 4, 0]]


def test_training_does_not_depend_on_the_order_of_captions():
    captions = [" ".join(random.Random(i).choices("abcdefgh", k=6)) for i in range(50)]
    shuffled = random.Random(1).sample(captions, len(captions))
    assert WordsTokenizer.train(captions, 6).words == WordsTokenizer.train(shuffled, 6).words


def test_ids_valid_and_cut():
    ids, valid, cut = WordsTokenizer(["a", "red", "disc", ","]).encode(["A red, red disc", "disc"], 3)
    assert ids.tolist() == [[2, 3, 5], [4, 0, 0]]
    assert valid.tolist() == [[True, True, True], [True, False, False]]
    assert cut == 1
    assert ids.dtype == np.int64
    assert valid.dtype == bool


def test_a_text_of_exactly_the_context_is_not_cut():
    assert WordsTokenizer(["a"]).encode(["a a a"], 3).cut == 0


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_text_is_refused(text):
    with pytest.raises(UserError, match="Text 1 is empty"):
        WordsTokenizer(["a"]).encode(["a", text], 3)


def test_no_captions_are_refused():
    with pytest.raises(UserError, match="No words"):
        WordsTokenizer.train(["", " "], 10)


def test_no_captions_are_fine_where_none_is_needed():
    tokenizer = WordsTokenizer.train([], 10, needed=False)
    assert tokenizer.vocabulary == 2
    assert tokenizer.encode(["a disc"], 3).ids.tolist() == [[1, 1, 0]]
    assert WordsTokenizer.train(CAPTIONS, 5, needed=False).words == ["a", "disc", "red"]


def test_repeated_words_are_refused():
    with pytest.raises(UserError, match="repeated"):
        WordsTokenizer(["a", "a"])


@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(max_size=12).map(lambda text: "a " + text), min_size=1, max_size=8))
def test_state_round_trips_through_json(texts):
    tokenizer = WordsTokenizer.train(texts, 12)
    again = load_tokenizer(json.loads(json.dumps(tokenizer.state())))
    first, second = tokenizer.encode(texts, 5), again.encode(texts, 5)
    assert np.array_equal(first.ids, second.ids)
    assert np.array_equal(first.valid, second.valid)
    assert first.ids.max() < again.vocabulary == tokenizer.vocabulary


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=30))
def test_splitting_keeps_every_visible_character(text):
    expected = "".join(unicodedata.normalize("NFKC", text).lower().split())
    assert "".join("".join(split(text)).split()) == expected
