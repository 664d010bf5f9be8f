"""Items on form: small changes to a given text, and instructions that code can check."""

from __future__ import annotations

from item_facts import EXTRACT
from item_words import Draw, Row, opening, row

SENTENCE = "{who1} {did1} {where1} {when1}."

EACH = 6  # items of each template below

# name: (longest reply in tokens, prompt, rules); words in braces are slots of the same draw
REWRITE: dict[str, tuple[int, str, Row]] = {
    "repeat": (48, f"Repeat this sentence: The {SENTENCE}", {"exact": f"The {SENTENCE}"}),
    "order": (
        48, "Repeat this sentence: On {day1}, {name1} sent {number1} {crop1} and {number2} {crop2} to {town1}.",
        {"exact": "On {day1}, {name1} sent {number1} {crop1} and {number2} {crop2} to {town1}."},
    ),
    "name": (
        48, 'Change the name "{name1}" to "{name2}" in this sentence: {name1} lives in {town1} and has a {pet1}.',
        {"exact": "{name2} lives in {town1} and has a {pet1}."},
    ),
    "word": (
        48, f'Replace the word "{{who1}}" with "{{who2}}" in this sentence: The {SENTENCE}',
        {"exact": "The {who2} {did1} {where1} {when1}."},
    ),
    "about": (
        48, "Rewrite this sentence so that it is about a {pet2}: The {pet1} sleeps {where1}.",
        {"exact": "The {pet2} sleeps {where1}."},
    ),
    "join": (
        48, 'Join these two sentences with "and": {name1} has a {pet1}. {name2} has a {pet2}.',
        {"exact": "{name1} has a {pet1} and {name2} has a {pet2}."},
    ),
    "merge": (
        48, "Write this as one sentence: {name1} is a {job1}. {name1} lives in {town1}.",
        {"says_all": ["{name1}", "{job1}", "{town1}"], "sentences": [1, 1]},
    ),
    "she": (
        48, 'Rewrite this sentence with "she" in place of "he": he went to {town1} and he bought {food1}.',
        {"says_all": ["she went to {town1}", "bought {food1}"], "lacks": ["he"]},
    ),
    "mend": (
        48, "Correct the mistakes in this sentence: {name1} have two {pet1}s and live in {town1}.",
        {"exact": "{name1} has two {pet1}s and lives in {town1}."},
    ),
    "spell": (
        48, "Correct the spelling: Yesterday teh {who1} {did1} {where1}.",
        {"exact": "the {who1} {did1} {where1}."},
    ),
    "today": (
        48, 'Change this sentence to start with "Today": The {who1} {did1} {where1}.',
        {"starts": "Today", "exact": "the {who1} {did1} {where1}."},
    ),
    "past": (
        48, "Rewrite this in the past tense: {name1} walks to the shop and buys {food1}.",
        {"exact": "{name1} walked to the shop and bought {food1}."},
    ),
    "negative": (
        48, "Make this sentence negative: {name1} likes {food1}.",
        {"says": ["{name1} does not like {food1}", "{name1} doesn't like {food1}"]},
    ),
    "list": (
        64, "Make a bulleted list of these words: {word1}, {word2}, {word3}, {word4}",
        {"lines": ["{word1}", "{word2}", "{word3}", "{word4}"]},
    ),
}  # fmt: skip


def rewrite() -> list[Row]:
    draw, rows = Draw(2), []
    for number, (passage, _) in enumerate(EXTRACT.values()):
        text = ". ".join(passage.format(**draw.slots()).split(". ")[:2]).rstrip(".") + "."
        rows.append(row("rewrite", "copy", number, f"Copy this text exactly: {text}", 64, {"exact": text}))
    for name, (tokens, prompt, rules) in REWRITE.items():
        drawn: dict[str, dict[str, str]] = {}  # by prompt, so that none comes twice
        while len(drawn) < EACH:
            slots = draw.slots()
            drawn[prompt.format(**slots)] = slots
        for number, (text, slots) in enumerate(drawn.items()):
            check = {rule: _filled(argument, slots) for rule, argument in rules.items()}
            rows.append(row("rewrite", name, number, text, tokens, check))
    return rows


def _filled(argument: object, slots: dict[str, str]) -> object:
    if isinstance(argument, str):
        return argument.format(**slots)
    return [_filled(part, slots) for part in argument] if isinstance(argument, list) else argument


TOPICS = {  # how the prompt names it: stems of which one must be in the reply
    "the sea": "sea ocean", "dogs": "dog", "summer": "summer", "rain": "rain", "music": "music",
    "the moon": "moon lunar", "bread": "bread", "books": "book", "trees": "tree", "school": "school",
    "winter": "winter", "cats": "cat", "horses": "horse", "gardens": "garden", "coffee": "coffee",
}  # fmt: skip

# name: (longest reply in tokens, instruction, rules)
INSTRUCT: dict[str, tuple[int, str, Row]] = {
    "one": (64, "Write one sentence about {}.", {"sentences": [1, 1], "prose": 5}),
    "two": (96, "Write two sentences about {}.", {"sentences": [2, 2], "prose": 8}),
    "three": (128, "Write at least three sentences about {}.", {"sentences": [3, None], "prose": 15}),
    "why": (96, "Explain in two or three sentences why people like {}.", {"sentences": [2, 3], "prose": 12}),
    "short": (64, "Tell me about {} in less than 30 words.", {"words": [None, 29], "prose": 5}),
    "fifty": (96, "Describe {} in at most 50 words.", {"words": [None, 50], "prose": 8}),
    "long": (128, "Write a paragraph of at least 40 words about {}.", {"words": [40, None], "prose": 40}),
    "ten": (64, "Write a sentence of at least ten words about {}.",
            {"words": [10, None], "sentences": [1, 1], "prose": 10}),
    "commas": (64, "Write one short sentence about {} without commas.",
               {"sentences": [1, 1], "without": ",", "prose": 4}),
    "bullets": (128, "List three facts about {} as bullet points.", {"bullets": [3, 3], "prose": 9}),
    "numbers": (128, "Give a numbered list of three facts about {}.", {"bullets": [3, 3], "prose": 9}),
    "pair": (96, "Give a numbered list of two facts about {}.", {"bullets": [2, 2], "prose": 8}),
    "starts": (64, 'Write a sentence about {}. Begin your answer with the word "Today".',
               {"starts": "Today", "prose": 5}),
    "letter": (128, 'Write a short letter to a friend about {}. Begin with "Dear friend".',
               {"starts": "Dear friend", "prose": 12}),
    "many": (96, 'What do people think about {}? Begin your answer with "Many people".',
             {"starts": "Many people", "prose": 5}),
    "happy": (64, 'Write a sentence about {} with the word "happy" in it.', {"says": ["happy"], "prose": 5}),
    "because": (64, 'Write a sentence about {} with the word "because" in it.', {"says": ["because"], "prose": 5}),
    "both": (64, 'Write a sentence about {} that contains the words "beautiful" and "world".',
             {"says_all": ["beautiful", "world"], "prose": 5}),
    "never": (96, 'Write a short paragraph about {} without the word "and".', {"lacks": ["and"], "prose": 15}),
    "question": (32, "Write a question about {}.", {"ends": "?", "prose": 4}),
}  # fmt: skip


def instruct() -> list[Row]:
    """Each reply must also name its topic, and not say its prompt back, so that a rule of form takes a real reply."""
    rows, topics = [], list(TOPICS.items())
    for place, (name, (tokens, text, rules)) in enumerate(INSTRUCT.items()):
        for number in range(5):
            topic, stems = topics[(5 * place + number + place // 3) % len(topics)]  # each with other neighbours
            prompt = text.format(topic)
            check = {"mentions": stems.split(), **rules, "lacks": [*rules.get("lacks", []), opening(prompt)]}
            rows.append(row("instruct", name, number, prompt, tokens, check))
    return rows
