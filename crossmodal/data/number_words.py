"""The digits in words, and what can be said about a digit, in four languages."""

from typing import NamedTuple


class Language(NamedTuple):
    """How one language speaks about a digit.

    Attributes:
        digits: the words for 0 to 9, as eSpeak NG and the sentences say them.
        affirming: clauses that say that the digit is ``{}``.
        denying: clauses that say that the digit is not ``{}``.
    """

    digits: tuple[str, ...]
    affirming: tuple[str, ...]
    denying: tuple[str, ...]


LANGUAGES: dict[str, Language] = {
    "en": Language(
        digits=tuple("zero one two three four five six seven eight nine".split()),
        affirming=(
            "it is {}",
            "the number is {}",
            "this must be {}",
            "i clearly see {} here",
            "we read {} there",
            "{} is right",
        ),
        denying=(
            "it is not {}",
            "the number is never {}",
            "this cannot be {}",
            "i see no {} here",
            "we do not read {} there",
            "{} is wrong",
        ),
    ),
    "de": Language(
        digits=tuple("null eins zwei drei vier fünf sechs sieben acht neun".split()),
        affirming=(
            "es ist {}",
            "die zahl ist {}",
            "das muss {} sein",
            "ich sehe hier deutlich {}",
            "wir lesen dort {}",
            "{} stimmt",
        ),
        denying=(
            "es ist nicht {}",
            "die zahl ist niemals {}",
            "das kann nicht {} sein",
            "ich sehe hier keine {}",
            "wir lesen dort nicht {}",
            "{} ist falsch",
        ),
    ),
    "fr": Language(
        digits=tuple("zéro un deux trois quatre cinq six sept huit neuf".split()),
        affirming=(
            "c' est {}",
            "le chiffre est {}",
            "ce doit être {}",
            "je vois bien {} ici",
            "nous lisons {} là",
            "{} est juste",
        ),
        denying=(
            "ce n' est pas {}",
            "le chiffre n' est jamais {}",
            "ce ne peut être {}",
            "je ne vois pas {} ici",
            "nous ne lisons pas {} là",
            "{} est faux",
        ),
    ),
    "es": Language(
        digits=tuple("cero uno dos tres cuatro cinco seis siete ocho nueve".split()),
        affirming=(
            "es el {}",
            "el número es {}",
            "esto debe ser {}",
            "aquí veo bien el {}",
            "allí leemos {}",
            "{} es correcto",
        ),
        denying=(
            "no es el {}",
            "el número nunca es {}",
            "esto no puede ser {}",
            "aquí no veo el {}",
            "allí no leemos {}",
            "{} es falso",
        ),
    ),
}
