"""Generate English-like documents from a probabilistic grammar: the endless corpus of the tiny model.

A document has a topic, a genre and a cast. The topic shifts the distribution of every content word, the
genre the mix of paragraphs, and the cast recurs under names and pronouns. On top of that come things a
model can only predict by reading back: number agreement across relative clauses, balanced brackets, sums,
dates with intervals, and codes that are introduced once and used again.

Text depends on `(seed, split)` alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from qsae_bench.tiny import lexicon
from qsae_bench.tiny.lexicon import article, third_person, words
from qsae_bench.tiny.phrases import Dice, Phrases, capital

TARGET_CHARACTERS = (1000, 1900)
"""A document ends with the paragraph that passes a length drawn from here: about 300 to 600 tokens."""

_CONNECTIVES = (
    "However", "Meanwhile", "Later", "After that", "For this reason", "Even so", "In the end", "Then",
)  # fmt: skip
_NUMBER_NOUNS = ("crate", "card", "stone", "bottle", "brick", "letter", "stick", "marble")


class _Document(Phrases):
    """Write one document: its paragraphs, and the state that counts on from one to the next."""

    def __init__(self, dice: Dice) -> None:
        topic = dice.pick(lexicon.TOPICS)
        self.genre = dice.pick(tuple(_GENRES))
        super().__init__(dice, topic)
        self.year = dice.integer(1850, 2020)
        self.line = 0
        self.minutes = 5 * dice.integer(48, 144)

    # Paragraphs

    def narrative(self) -> str:
        """Let a named person act, then return as a pronoun."""
        dice, person = self.dice, self.dice.pick(self.cast)
        sentences = [capital(self.action(person.name)) + "."]
        for _ in range(dice.integer(1, 4)):
            draw = dice.integer(1, 10)
            if draw <= 5:
                sentences.append(capital(self.action(person.pronoun)) + ".")
            elif draw <= 6:
                other = dice.pick([c for c in self.cast if c is not person])
                sentences.append(
                    f"{other.name} saw {person.oblique} and felt {dice.skewed(lexicon.FEELINGS)}."
                )
            elif draw <= 7:
                lost = f"{person.possessive} {self.word('things')}{self.tail()}"
                sentences.append(f"{capital(person.pronoun)} lost {lost}.")
            elif draw <= 8:
                sentences.append(self.speech())
            else:
                sentences.append(f"{dice.pick(_CONNECTIVES)}, {self.action(person.pronoun)}.")
        return " ".join(sentences)

    def description(self) -> str:
        dice = self.dice
        sentences = []
        for _ in range(dice.integer(2, 5)):
            if dice.chance(0.12):
                text = self.conditional()
            else:
                text = self.comparison() if dice.chance(0.12) else self.present()
            if dice.chance(0.15):
                text = f"{dice.pick(_CONNECTIVES)}, {text}"
            sentences.append(capital(text) + ".")
        return " ".join(sentences)

    def introduction(self) -> str:
        person = self.dice.pick(self.cast)
        return (
            f"{person.name} {person.surname} is {article(person.role)} {person.role}. "
            f"{capital(person.possessive)} number is {person.code}. "
            f"{capital(person.pronoun)} lives {self.where()}."
        )

    def roll_call(self) -> str:
        """List names, roles and codes of the cast, which only the rest of the document can predict."""
        rows = [f"{p.surname}, {p.name} ({p.role}): {p.code}" for p in self.cast]
        return "\n".join(["Present:", *rows])

    def dialogue(self) -> str:
        return "\n".join(self.speech() for _ in range(self.dice.integer(2, 4)))

    def history(self) -> str:
        """Date an event, and a later one whose year follows from the interval."""
        dice, person = self.dice, self.dice.pick(self.cast)
        gap = dice.integer(2, 12)
        weekday, day = dice.pick(lexicon.WEEKDAYS), dice.integer(1, 28)
        return (
            f"On {weekday}, {day} {dice.pick(lexicon.MONTHS)} {self.year}, {self.action(person.name)}. "
            f"{capital(lexicon.NUMBER_WORDS[gap])} years later, in {self.year + gap}, "
            f"{self.action(person.pronoun)}."
        )

    def sums(self) -> str:
        return "\n".join(self.equation() for _ in range(self.dice.integer(2, 5)))

    def equation(self) -> str:
        dice, draw = self.dice, self.dice.integer(1, 10)
        if draw <= 5:
            a, b = dice.integer(1, 49), dice.integer(1, 49)
            return f"{a} + {b} = {a + b}"
        if draw <= 8:
            a, b = dice.integer(1, 49), dice.integer(1, 49)
            return f"{a + b} - {b} = {a}"
        a, b = dice.integer(2, 9), dice.integer(2, 9)
        return f"{a} * {b} = {a * b}"

    def counting(self) -> str:
        """Write a sum in words."""
        dice = self.dice
        thing = third_person(dice.pick(_NUMBER_NOUNS) if dice.chance(0.3) else self.word("things"))
        a, b, person = dice.integer(2, 40), dice.integer(2, 40), dice.pick(self.cast)
        if dice.chance(0.5):
            now = f"Now {person.pronoun} has {a + b} {thing}."
            return f"{person.name} had {a} {thing} and bought {b} more. {now}"
        left = f"{person.name} took {b} of them, so {a} {thing} were left."
        return f"There were {a + b} {thing} {self.where()}. {left}"

    def brackets(self) -> str:
        return f"{self.dice.pick(('Plan', 'Note', 'Order', 'Sketch'))}: {self.nested(0)}"

    def nested(self, depth: int) -> str:
        dice = self.dice
        pair = dice.pick(("()", "()", "[]", "{}"))
        left, right = pair[0], pair[1]
        items = []
        for _ in range(dice.integer(1, 3)):
            deeper = depth < 3 and dice.chance(0.45 - 0.1 * depth)
            items.append(self.nested(depth + 1) if deeper else self.word("things"))
        return f"{self.word('places')}{left}{', '.join(items)}{right}"

    def listing(self) -> str:
        """List numbered or bulleted things; a bulleted list ends with its total."""
        dice = self.dice
        things = dice.sample(self.topic.things, dice.integer(3, 5))
        if dice.chance(0.5):
            rows = [
                f"{i}. {capital(self.word('transitive'))} the {thing}" for i, thing in enumerate(things, 1)
            ]
            return "\n".join(["To do:", *rows])
        counts = [dice.integer(1, 9) for _ in things]
        rows = [
            f"- {n} {third_person(thing) if n > 1 else thing}"
            for n, thing in zip(counts, things, strict=True)
        ]
        return "\n".join(["Needed:", *rows, f"Total: {sum(counts)}"])

    def log(self) -> str:
        """Write numbered, timed lines; both count on through the document."""
        dice, rows = self.dice, []
        for _ in range(dice.integer(2, 4)):
            self.line += 1
            self.minutes += 5 * dice.integer(1, 6)
            hour, minute = divmod(self.minutes, 60)
            who = dice.pick(self.cast)
            stamp = f"[{self.line:02d}] {hour % 24:02d}:{minute:02d}"
            rows.append(f"{stamp} {who.code} {self.action(who.surname)}")
        return "\n".join(rows)

    def colours(self) -> str:
        """Give properties once and ask for one at once."""
        dice = self.dice
        things, colours = dice.sample(self.topic.things, 3), dice.sample(lexicon.COLOURS, 3)
        text = ", ".join(f"the {t} is {c}" for t, c in zip(things, colours, strict=True))
        asked = dice.integer(0, 2)
        return f"{capital(text)}. Which colour is the {things[asked]}? It is {colours[asked]}."

    def letter(self) -> str:
        sender, receiver = self.dice.sample(self.cast, 2)
        signed = f"Yours, {sender.name} {sender.surname}"
        return f"Dear {receiver.name},\n{self.description()} {self.counting()}\n{signed}"

    # The whole

    def title(self) -> str:
        dice = self.dice
        first, place = dice.pick(self.favourites["agents"]), dice.pick(self.favourites["places"])
        return f"# {capital(self.genre)}: the {first} of the {place}"

    def write(self) -> str:
        dice = self.dice
        parts = [self.title(), self.introduction()]
        kinds = _GENRES[self.genre]
        target = dice.integer(*TARGET_CHARACTERS)
        length = sum(map(len, parts))
        while length < target:
            parts.append(getattr(self, dice.pick(kinds))())
            length += len(parts[-1]) + 1
        return "\n".join(parts) + "\n"


_COMMON = "narrative description introduction colours"
_GENRES = {
    "story": words(f"{_COMMON} narrative narrative dialogue history letter"),
    "report": words(f"{_COMMON} description history roll_call listing brackets"),
    "log": words(f"{_COMMON} log log log roll_call history counting"),
    "lesson": words(f"{_COMMON} sums sums counting brackets dialogue"),
    "guide": words(f"{_COMMON} description description listing brackets letter"),
}
"""genre -> its paragraphs, as methods of a document; one that is named twice is twice as likely"""


def documents(seed: int, split: str) -> Iterator[str]:
    """Yield endless documents of a split, the same for the same arguments.

    Args:
        seed: picks the stream; other seeds give other texts of the same distribution.
        split: any name, such as "train" or "heldout"; splits draw from independent streams.
    """
    index = 0
    while True:
        # One generator a document, so that a change within a document doesn't shift all later ones.
        yield _Document(Dice(f"{seed}/{split}/{index}")).write()
        index += 1
