"""Tokenizers: learned from a corpus, the same after being written, without stop words."""

import pytest

pytest.importorskip("tokenizers", reason="needs the extra train")

from crossmodal.data.tokenizer import Tokenizer, tokenizer_of, train_tokenizer
from crossmodal.data.vocabulary import Vocabulary

CORPUS = ["The cat sat.", "the dog sat on the cat", "a dog"]


def test_frequent_words_get_numbers_and_rare_ones_are_unknown():
    tokenizer = train_tokenizer(CORPUS, vocabulary=4)
    assert tokenizer.encode("the THE zebra").tolist()[0] == tokenizer.encode("the").item()
    assert tokenizer.encode("zebra").tolist() == [1]
    assert len(tokenizer) == 4


def test_words_and_punctuation_are_apart():
    assert train_tokenizer(CORPUS).tokens("The cat sat.") == ["the", "cat", "sat", "."]


def test_parts_of_words_spell_new_ones():
    tokenizer = train_tokenizer(CORPUS, model="bpe", vocabulary=60)
    assert "".join(tokenizer.tokens("dots")) == "dots"


def test_written_and_read_again_it_is_the_same():
    tokenizer = train_tokenizer(CORPUS, stop_words=("the",))
    again = Tokenizer(tokenizer.json, ("the",))
    for text in ("the cat", "dog on zebra", ""):
        assert again.encode(text).tolist() == tokenizer.encode(text).tolist()


def test_stop_words_are_left_out_whatever_their_case():
    tokenizer = train_tokenizer(CORPUS, stop_words=("the", "on"))
    assert tokenizer.tokens("The cat sat on The dog") == ["cat", "sat", "dog"]
    assert len(tokenizer.encode("the on")) == 0


def test_closed_list_numbers_as_the_vocabulary_of_the_demo():
    words = Vocabulary(["zwei", "eins", ","]).words
    text = "eins , drei zwei"
    assert tokenizer_of(words).encode(text).tolist() == Vocabulary(words).encode(text.split()).tolist()


def test_closed_list_of_letters_spells():
    tokenizer = tokenizer_of(list("abc"), letters=True, unknown=False)
    assert tokenizer.encode("cab").tolist() == [3, 1, 2]


def test_text_that_is_no_tokenizer_is_refused():
    with pytest.raises(ValueError, match="must be the JSON of a tokenizer"):
        Tokenizer("{}")
