from __future__ import annotations

import json
import pickle

import pytest
import sentencepiece

from distill.errors import UserError
from distill.models.tokenizers import load_tokenizer
from distill.models.tokenizers.sentence_piece import SentencePieceTokenizer


def test_ids_are_the_lower_cased_pieces_without_begin_or_end(sentencepiece_model):
    tokenizer = SentencePieceTokenizer(sentencepiece_model)
    plain = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)
    expected = plain.encode("a red disc")
    ids, valid, cut = tokenizer.encode(["A Red DISC"], len(expected) + 2)
    assert ids.tolist() == [[*expected, 0, 0]]
    assert valid.sum() == len(expected)
    assert cut == 0
    assert {2, 3}.isdisjoint(ids[0].tolist())
    assert tokenizer.vocabulary == plain.get_piece_size()
    assert tokenizer.encode(["a red disc"], 2).ids.tolist() == [expected[:2]]
    assert tokenizer.encode(["a red disc"], 2).cut == 1


def test_state_holds_the_model_itself(sentencepiece_model, tmp_path):
    file = tmp_path / "small.model"
    file.write_bytes(sentencepiece_model)
    tokenizer = SentencePieceTokenizer.from_file(file)
    state = json.loads(json.dumps(tokenizer.state()))
    file.unlink()
    again = load_tokenizer(state)
    texts = ["a green square on a field", "blue"]
    assert again.encode(texts, 12).ids.tolist() == tokenizer.encode(texts, 12).ids.tolist()
    assert again.state() == tokenizer.state()


def test_it_travels_to_worker_processes(sentencepiece_model):
    tokenizer = SentencePieceTokenizer(sentencepiece_model)
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode(["a red wall"], 9).ids.tolist() == tokenizer.encode(["a red wall"], 9).ids.tolist()


def test_empty_text_missing_file_and_other_files(sentencepiece_model, tmp_path):
    with pytest.raises(UserError, match="Text 0 is empty"):
        SentencePieceTokenizer(sentencepiece_model).encode(["   "], 4)
    with pytest.raises(UserError, match=r"No tokenizer file at .*absent\.model"):
        SentencePieceTokenizer.from_file(tmp_path / "absent.model")
    for content in (b"", b"not a model at all", bytes(range(256)) * 4):
        other = tmp_path / "other.model"
        other.write_bytes(content)
        with pytest.raises(UserError, match=r"Not a SentencePiece model: .*other\.model"):
            SentencePieceTokenizer.from_file(other)
