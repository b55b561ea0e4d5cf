"""The small language of the demo: short English sentences over about 150 words."""

import random

NUMBERS = "two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty hundred".split()
COLOURS = "red blue green white black yellow brown purple silver golden".split()
SIZES = "small large heavy empty broken quiet old new warm cold".split()
THINGS = (
    "boat house river garden bird horse table window road letter bottle candle mountain bridge basket mirror "
    "ladder blanket engine picture"
).split()
PLACES = "kitchen forest village station harbour market island library factory castle".split()
VERBS = "sees holds moves finds leaves takes paints sells carries follows repairs watches forgets opens".split()
PEOPLE = (
    "Anna Peter Maria Thomas Julia Robert|the doctor|the teacher|the farmer|the captain|the singer|"
    "the painter|the soldier|my brother|my sister|our neighbour"
).split("|")
PEOPLE = PEOPLE[0].split() + PEOPLE[1:]
WHEN = "today|tomorrow|every morning|after dinner|before winter|on Monday|on Friday|in summer|at midnight".split("|")
PREPOSITIONS = "near|behind|under|above|beside|between the trees and".split("|")
HOW = "slowly quickly gently always never often".split()


def sentence(rng: random.Random) -> str:
    """One sentence of 4 to 11 words, capitalised and with its full stop."""
    person, verb, place = rng.choice(PEOPLE), rng.choice(VERBS), rng.choice(PLACES)

    def thing() -> str:
        return f"{rng.choice(COLOURS + SIZES)} {rng.choice(THINGS)}"

    pattern = rng.randrange(7)
    if pattern == 0:
        words = f"{person} {verb} {rng.choice(NUMBERS)} {thing()}s"
    elif pattern == 1:
        words = f"the {thing()} is {rng.choice(PREPOSITIONS)} the {thing()}"
    elif pattern == 2:
        words = f"{rng.choice(WHEN)} {person} {rng.choice(HOW)} {verb} the {thing()}"
    elif pattern == 3:
        words = f"{person} {verb} a {thing()} in the {place}"
    elif pattern == 4:
        words = f"there are {rng.choice(NUMBERS)} {thing()}s {rng.choice(PREPOSITIONS)} the {place}"
    elif pattern == 5:
        words = f"{person} {rng.choice(HOW)} {verb} it {rng.choice(WHEN)}"
    else:
        words = f"please count {', '.join(rng.sample(NUMBERS, rng.randint(3, 4)))}"
    return words[0].upper() + words[1:] + "."


def vocabulary() -> frozenset[str]:
    """Every word that `sentence` can say, lower case."""
    singles = NUMBERS + COLOURS + SIZES + PLACES + VERBS + HOW + THINGS + [thing + "s" for thing in THINGS]
    phrases = PEOPLE + WHEN + PREPOSITIONS + ["the is a in there are it please count"]
    return frozenset(word.lower() for text in singles + phrases for word in text.split())
