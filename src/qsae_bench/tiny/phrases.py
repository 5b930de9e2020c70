"""Make phrases and sentences of one document of the tiny corpus, and the dice that choose them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from qsae_bench.tiny import lexicon
from qsae_bench.tiny.lexicon import article, past, third_person, words

T = TypeVar("T")

_PREPOSITIONS = ("near", "behind", "in front of", "inside", "beyond", "above", "beside", "next to")
_ADVERBS = (
    "slowly", "quickly", "quietly", "often", "rarely", "again", "together", "carefully", "at once",
    "every day",
)  # fmt: skip
_TIMES = (
    "in the morning", "at noon", "at dusk", "after midnight", "before dawn", "all week", "in winter",
    "in summer",
)  # fmt: skip
_SAYING = ("said", "asked", "replied", "shouted", "whispered", "answered")
_ONSETS = words("b br c ch d dr f fl g gr h k l m n p pl qu r s sh st t th tr v w z")
_VOWELS = ("a", "e", "i", "o", "u", "ea", "ou")
_CODAS = ("", "n", "r", "l", "ck", "st", "nd", "m", "ver", "ton", "ing", "ter", "ss")


@dataclass(frozen=True)
class Character:
    """Describe a named person of one document."""

    name: str
    surname: str
    pronoun: str
    role: str
    code: str

    @property
    def possessive(self) -> str:
        return "her" if self.pronoun == "she" else "his"

    @property
    def oblique(self) -> str:
        return "her" if self.pronoun == "she" else "him"


@dataclass(frozen=True)
class NounPhrase:
    text: str
    plural: bool

    def verb(self, base: str) -> str:
        """Return the present-tense form of `base` that agrees with this phrase."""
        return base if self.plural else third_person(base)

    @property
    def be(self) -> str:
        return "are" if self.plural else "is"


class Dice:
    """Draw with `random.Random.random()`, the one method whose sequence Python promises to keep."""

    def __init__(self, key: str) -> None:
        self._random = random.Random(key).random

    def chance(self, probability: float) -> bool:
        return self._random() < probability

    def integer(self, low: int, high: int) -> int:
        """Draw an integer from low to high, both included."""
        return low + int(self._random() * (high - low + 1))

    def pick(self, items: Sequence[T]) -> T:
        return items[int(self._random() * len(items))]

    def skewed(self, items: Sequence[T]) -> T:
        """Pick early items more often, roughly as word frequencies fall off."""
        return items[int(self._random() ** 1.8 * len(items))]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        rest = list(items)
        return [rest.pop(int(self._random() * len(rest))) for _ in range(min(count, len(rest)))]


def capital(text: str) -> str:
    """Return `text` with its first letter in upper case and the rest as it is."""
    return text[0].upper() + text[1:]


class Phrases:
    """Hold the words a document prefers and its cast, and make everything up to a sentence of them."""

    def __init__(self, dice: Dice, topic: lexicon.Topic) -> None:
        self.dice = dice
        self.topic = topic
        # A document keeps coming back to a few of its topic's words: that makes context worth reading.
        self.favourites = {
            part: dice.sample(getattr(topic, part), 6)
            for part in ("agents", "things", "places", "transitive", "intransitive", "adjectives")
        }
        self.cast = self._cast(dice.integer(2, 3))
        # Invented names come in pieces of words and can only be copied: they keep induction heads busy.
        self.villages = [self._invented_name(), self._invented_name()]

    def _cast(self, count: int) -> list[Character]:
        dice = self.dice
        cast = []
        for surname in dice.sample(lexicon.SURNAMES, count):
            she = dice.chance(0.5)
            code = f"{dice.pick('ABCDEFGHKLMNPRTVX')}{dice.integer(10, 99)}-{dice.integer(100, 999)}"
            name = dice.pick(lexicon.SHE if she else lexicon.HE)
            role = dice.pick(self.favourites["agents"])
            cast.append(Character(name, surname, "she" if she else "he", role, code))
        return cast

    def _invented_name(self) -> str:
        pick = self.dice.pick
        syllables = (pick(_ONSETS) + pick(_VOWELS) + pick(_CODAS) for _ in range(self.dice.integer(2, 3)))
        return capital("".join(syllables))

    # Words and phrases

    def word(self, part: str) -> str:
        draw = self.dice.integer(1, 100)
        if draw <= 50:
            return self.dice.pick(self.favourites[part])
        topic = self.topic if draw <= 92 else self.dice.pick(lexicon.TOPICS)
        return self.dice.skewed(getattr(topic, part))

    def noun(self, part: str | None = None, *, plain: bool = False) -> NounPhrase:
        part = part or ("agents" if self.dice.chance(0.6) else "things")
        noun, plural = self.word(part), self.dice.chance(0.45)
        adjective = "" if plain or self.dice.chance(0.6) else self.word("adjectives") + " "
        head = adjective + (third_person(noun) if plural else noun)
        draw = self.dice.integer(1, 10)
        if draw <= 6 or plain:
            return NounPhrase(f"the {head}", plural)
        if draw <= 8:
            lead = self.dice.pick(("some", "many", "these")) if plural else article(head)
            return NounPhrase(f"{lead} {head}", plural)
        if plural:
            return NounPhrase(f"{self.dice.pick(lexicon.NUMBER_WORDS[2:])} {head}", True)
        return NounPhrase(f"{self.dice.pick(self.cast).name}'s {head}", False)

    def where(self) -> str:
        dice = self.dice
        if dice.chance(0.12):
            return f"{dice.pick(('in', 'near'))} {dice.pick(self.villages)}"
        place = f"{dice.pick(('in', 'at', 'near', 'behind'))} the {self.word('places')}"
        if dice.chance(0.3):
            place = f"{dice.pick(_PREPOSITIONS)} the {self.word('things')} {place}"
        return place

    def tail(self) -> str:
        """Return what may follow a verb phrase: an adverb, a place, a time, or nothing."""
        draw = self.dice.integer(1, 10)
        if draw <= 4:
            return " " + self.where()
        if draw <= 6:
            return " " + self.dice.pick(_ADVERBS)
        return " " + self.dice.pick(_TIMES) if draw <= 7 else ""

    def subject(self) -> NounPhrase:
        """Return a noun phrase, often with words between its head and the verb that agrees with it."""
        dice, draw = self.dice, self.dice.integer(1, 10)
        if draw <= 4:
            return self.noun()
        head = self.noun(plain=draw <= 6)
        inner = self.noun(plain=True)
        if draw <= 6:
            more = f"that {inner.text} {inner.verb(self.word('transitive'))}"
        elif draw <= 8:
            more = f"that {head.verb(self.word('transitive'))} {inner.text}"
        else:
            more = f"{dice.pick(_PREPOSITIONS)} {inner.text}"
        return NounPhrase(f"{head.text} {more}", head.plural)

    # Sentences, each returned without its place in a paragraph

    def present(self) -> str:
        subject = self.subject()
        draw = self.dice.integer(1, 10)
        if draw <= 4:
            return f"{subject.text} {subject.verb(self.word('intransitive'))}{self.tail()}"
        if draw <= 7:
            return f"{subject.text} {subject.verb(self.word('transitive'))} {self.noun().text}{self.tail()}"
        second = f" and {self.word('adjectives')}" if self.dice.chance(0.4) else ""
        return f"{subject.text} {subject.be} {self.word('adjectives')}{second}"

    def action(self, who: str) -> str:
        """Say that `who`, a name or a pronoun, did something."""
        if self.dice.chance(0.6):
            return f"{who} {past(self.word('transitive'))} {self.noun().text}{self.tail()}"
        return f"{who} {past(self.word('intransitive'))}{self.tail()}"

    def conditional(self) -> str:
        first = self.noun()
        condition = f"if {first.text} {first.be} {self.word('adjectives')}"
        return f"{condition}, {self.noun().text} will {self.word('intransitive')}"

    def comparison(self) -> str:
        first = self.noun(plain=True)
        return f"{first.text} {first.be} more {self.word('adjectives')} than {self.noun(plain=True).text}"

    def speech(self) -> str:
        person, verb = self.dice.pick(self.cast), self.dice.pick(_SAYING)
        text = self.dice.pick((self.present, self.conditional, self.comparison))()
        if self.dice.chance(0.5):
            mark = {"asked": "?", "shouted": "!"}.get(verb, ",")
            if mark == "?":
                thing = self.noun(plain=True)
                text = f"{thing.be} {thing.text} {self.word('adjectives')}"
            return f'"{capital(text)}{mark}" {verb} {person.name}.'
        return f'{person.name} {verb}: "{capital(text)}."'
