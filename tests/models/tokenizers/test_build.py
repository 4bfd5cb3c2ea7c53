from __future__ import annotations

import pytest

from distill.config.schema import TextConfig
from distill.errors import UserError
from distill.models.tokenizers import Tokenizer, build_tokenizer, load_tokenizer
from distill.models.tokenizers.clip import ClipTokenizer
from distill.models.tokenizers.sentence_piece import SentencePieceTokenizer
from distill.models.tokenizers.words import WordsTokenizer


def test_words_are_learnt_from_the_captions_up_to_the_vocabulary():
    tokenizer = build_tokenizer(TextConfig(tokenizer="words", vocabulary=8), (f"w{i} the" for i in range(20)))
    assert isinstance(tokenizer, WordsTokenizer)
    assert isinstance(tokenizer, Tokenizer)
    assert tokenizer.vocabulary == 8
    assert tokenizer.words[0] == "the"


def test_clip_and_sentencepiece_leave_the_captions_unread(sentencepiece_model, tmp_path):
    def unread():
        raise AssertionError("captions were read")
        yield

    file = tmp_path / "small.model"
    file.write_bytes(sentencepiece_model)
    assert isinstance(build_tokenizer(TextConfig(tokenizer="clip"), unread()), ClipTokenizer)
    assert isinstance(build_tokenizer(TextConfig(tokenizer=str(file)), unread()), SentencePieceTokenizer)


def test_unknown_names_get_a_hint():
    with pytest.raises(UserError, match=r"Unknown tokenizer 'word'\. Did you mean 'words'"):
        build_tokenizer(TextConfig(tokenizer="word"), [])
    with pytest.raises(UserError, match="Unknown tokenizer kind 'bpe'"):
        load_tokenizer({"kind": "bpe"})
