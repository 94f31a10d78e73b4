"""Tokenizers: learned from a corpus, the same after being written, without stop words."""

import pytest

pytest.importorskip("tokenizers", reason="needs the extra train")

from crossmodal.data.tokenizer import Tokenizer, read_tokenizer, tokenizer_of, train_tokenizer
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


def pretrained(folder, **options):
    """As a text encoder of another library comes with: tokens of its own around every text."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "cat": 4}, unk_token="[UNK]")
    )
    if not options.get("bare"):
        made.normalizer = tokenizers.normalizers.Lowercase()
        made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_tokenizer_of_another_library_is_read(tmp_path):
    tokenizer = read_tokenizer(pretrained(tmp_path))
    assert tokenizer.encode("Cat dog").tolist() == [2, 4, 1, 3]
    for nothing in ("", "  "):
        assert len(tokenizer.encode(nothing)) == 0


@pytest.mark.parametrize("bare", [False, True])
def test_stop_words_are_left_out_of_it_too(tmp_path, bare):
    tokenizer = read_tokenizer(pretrained(tmp_path, bare=bare), ("dog",))
    assert tokenizer.encode("dog cat").tolist() == [2, 4, 3]
    assert len(tokenizer.encode("dog")) == 0


def test_padding_that_a_tokenizer_of_another_library_adds_is_no_word(tmp_path):
    """To a fixed length, with a token of its own."""
    tokenizers = pytest.importorskip("tokenizers")
    path = pretrained(tmp_path)
    made = tokenizers.Tokenizer.from_file(str(path))
    made.enable_padding(length=9, pad_id=4, pad_token="cat")
    made.save(str(path))
    assert read_tokenizer(path).encode("dog").tolist() == [2, 1, 3] and read_tokenizer(path).tokens("") == []


def bytes_of(text):
    """A tokenizer of bytes, as GPT-2's: a space is a part of the word behind it."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(show_progress=False, initial_alphabet=alphabet)
    made.train_from_iterator([text] * 3, trainer)
    return made.to_str()


@pytest.mark.parametrize(
    ("text", "left"),
    [("a café The dog", "café dog"), ("the dog", "dog"), ("dog", "dog"), ("The", ""), ("dog,the,café", "dog, ,café")],
)
def test_stop_words_leave_the_other_bytes_as_they_were(text, left):
    written = bytes_of("a café the dog")
    assert Tokenizer(written, ("the", "a")).encode(text).tolist() == Tokenizer(written).encode(left).tolist()


def test_what_a_stop_word_stood_between_stays_apart():
    tokenizer = train_tokenizer(["so -the- -- dog"], stop_words=("the",))
    assert tokenizer.tokens("dog -the-") == ["dog", "-", "-"]
    bare = tokenizer_of(["ab", "a", "b"], unknown=False)
    assert Tokenizer(bare.json, (",",)).tokens("a,b") == ["a", "b"]


def test_closed_list_leaves_out_what_it_does_not_know_where_nothing_stands_for_it():
    """A file ends in a new line; padding in its place would be read as a letter."""
    letters = tokenizer_of(list("abc"), letters=True, unknown=False)
    assert letters.encode("ab?\n\tc\n").tolist() == [1, 2, 3] and letters.tokens("a!") == ["a"]


def test_closed_list_knows_words_before_punctuation():
    tokenizer = tokenizer_of(["three", ",", "c'"])
    assert tokenizer.encode('three, (three) "c\' three".').tolist() == [2, 3, 1, 2, 1, 1, 4, 2, 1, 1]


@pytest.mark.parametrize(("content", "error"), [(None, FileNotFoundError), ("{}", ValueError)])
def test_file_that_holds_no_tokenizer_is_named(tmp_path, content, error):
    path = tmp_path / "tokenizer.json"
    if content:
        path.write_text(content)
    with pytest.raises(error, match=str(path)):
        read_tokenizer(path)


def test_unknown_kind_of_tokens_is_refused():
    with pytest.raises(ValueError, match=r"tokens must be one of word, bpe or end in \.json, got 'words'"):
        train_tokenizer(CORPUS, model="words")
