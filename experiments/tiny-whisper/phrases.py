"""The sentences: short radio messages of the harbour Saltmere, everyday phrases with other, invented names, and random
sequences of words.

`harbour.txt` and `everyday.txt` give the words for each slot, then, below an empty line, the templates.
"""

import random
import re
from pathlib import Path

HERE = Path(__file__).parent


def words(path: Path) -> dict[str, list[str]]:
    """Return slot -> words, from the lines `slot: word, word` at the head of a file."""
    head = path.read_text().split("\n\n")[0]
    return {slot: entries.split(", ") for slot, entries in (line.split(": ") for line in head.splitlines())}


HARBOUR, EVERYDAY = words(HERE / "harbour.txt"), words(HERE / "everyday.txt")
TEMPLATES = {name: (HERE / f"{name}.txt").read_text().split("\n\n")[1].splitlines() for name in ("harbour", "everyday")}
NAMES = " ".join(HARBOUR["boat"] + HARBOUR["place"])
PARTS = ("boat", "place", "onset", "rhyme", "link", "ending")  # slots of names and of parts of names
SPOKEN = [
    entry for slots in (HARBOUR, EVERYDAY) for slot, entries in slots.items() if slot not in PARTS for entry in entries
]
SPOKEN += [re.sub(r"{\w+}", "", template) for templates in TEMPLATES.values() for template in templates]
WORDS = sorted({word for text in SPOKEN for word in re.findall(r"[a-z]+", text.lower())} - set(NAMES.lower().split()))


def harbour(rng: random.Random) -> str:
    """Return a radio message: 3 to 8 words out of about 80."""
    return _fill(rng.choice(TEMPLATES["harbour"]), HARBOUR, rng)


def everyday(rng: random.Random) -> str:
    """Return an everyday phrase: 3 to 9 words out of about 350, and invented names to spell from the sound."""
    return _fill(rng.choice(TEMPLATES["everyday"]), EVERYDAY, rng)


def pretraining(rng: random.Random) -> str:
    """Return a sentence of the pre-training corpus: an everyday phrase, a radio message with invented names, or a
    random sequence of words, which a model cannot guess from context; each with the same probability.
    """
    kind = rng.randrange(3)
    if kind == 0:
        return everyday(rng)
    if kind == 1:
        template = re.sub(r"{(boat|place)}|Saltmere", "{name}", rng.choice(TEMPLATES["harbour"]))
        return _fill(template, HARBOUR, rng)
    words = [_name(rng) if rng.random() < 0.15 else rng.choice(WORDS) for _ in range(rng.randint(2, 6))]
    sentence = " ".join(words)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _fill(template: str, slots: dict[str, list[str]], rng: random.Random) -> str:
    used: set[str] = set()

    def draw(match: re.Match) -> str:
        if match[1] == "name":
            return _name(rng)
        word = rng.choice([word for word in slots[match[1]] if word not in used])
        used.update({word} - set(EVERYDAY["digit"]))
        return word

    sentence = re.sub(r"{(\w+)}", draw, template)
    return sentence[0].upper() + sentence[1:]


def _name(rng: random.Random) -> str:
    """Return an invented name of two or three syllables, such as `Brinwick`; never one of the harbour's."""
    onset, rhyme, link, ending = (rng.choice(EVERYDAY[part]) for part in ("onset", "rhyme", "link", "ending"))
    name = onset + rhyme + (link if rng.random() < 0.5 else "") + ending
    return _name(rng) if name in NAMES else name
