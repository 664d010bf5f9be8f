"""Items of grammar: two sentences that differ in one word, one of which is English; told apart by likelihood."""

from __future__ import annotations

from item_words import Draw, Row

EACH = 10

# name: (context, right option, wrong option)
PAIRS = {
    "verb": ("The {job1}s {where1}", "are very happy.", "is very happy."),
    "near": ("The {job1} near the {thing1}s", "was in {town1}.", "were in {town1}."),
    "who": ("The {job1} who met the {job2}s", "has a {pet1}.", "have a {pet1}."),
    "that": ("The {job1}s that the {job2} likes", "are in {town1}.", "is in {town1}."),
    "each": ("Each of the {job1}s", "owns a {thing1}.", "own a {thing1}."),
    "everyone": ("Everyone who eats {crop1}", "lives in {town1}.", "live in {town1}."),
    "fewer": ("In {month1}, {name1} sold", "fewer {crop1} than {name2}.", "less {crop1} than {name2}."),
    "article": ("{name1} wants to buy", "an old {thing1}.", "a old {thing1}."),
    "gone": ("On {day1}, {name1} had", "gone to {town1}.", "went to {town1}."),
    "quick": ("The {job1} and the {pet1}", "ran quickly.", "ran quick."),
    "will": ("Next {month1}, {name1} will", "buy a {thing1}.", "bought a {thing1}."),
    "self": ("{name1} says that the {job1}s like", "themselves.", "himself."),
    "there": ("In the garden of {name1} there", "are two {pet1}s.", "is two {pet1}s."),
    "asked": ("{name1} asked {name2} where", "the {thing1} was.", "was the {thing1}."),
    "none": ("{name1} has not seen", "any {pet1}s in {town1}.", "some {pet1}s in {town1}."),
    "enough": ("This {thing1} is not", "big enough for {name1}.", "enough big for {name1}."),
}


def grammar() -> list[Row]:
    draw, rows = Draw(3), []
    for name, (context, right, wrong) in PAIRS.items():
        drawn: dict[str, dict[str, str]] = {}  # by text, so that none comes twice
        while len(drawn) < EACH:
            slots = draw.slots()
            drawn[f"{context} {right}".format(**slots)] = slots
        for number, slots in enumerate(drawn.values()):
            options = [text.format(**slots) for text in (right, wrong)]
            answer = number % 2
            rows.append({"id": f"grammar/{name}/{number}", "kind": "grammar", "context": context.format(**slots),
                         "options": options[::-1] if answer else options, "answer": answer})  # fmt: skip
    return rows
