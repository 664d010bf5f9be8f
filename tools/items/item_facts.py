"""Items on facts: a question on a passage of invented ones, and short knowledge."""

from __future__ import annotations

import re

from item_words import TABLES, Draw, Row, row

# name: (passage, [(question, the answer's slot)]); a slot is a table of words and a number
EXTRACT: dict[str, tuple[str, list[tuple[str, str]]]] = {
    "jobs": (
        "{name1} is a {job1} and lives in {town1}. {name2} is a {job2} and lives in {town2}. They meet every {day1} "
        "to play chess.",
        [
            ("What is the job of {name1}?", "job1"),
            ("Where does {name2} live?", "town2"),
            ("On which day do they play chess?", "day1"),
        ],
    ),
    "festival": (
        "The {town1} Festival takes place every {month1}. It began in {year1} and lasts {number1} days. In "
        "{month2} the town also holds a small market.",
        [
            ("In which month is the {town1} Festival?", "month1"),
            ("In which year did the festival begin?", "year1"),
            ("How many days does the festival last?", "number1"),
        ],
    ),
    "pets": (
        "{name1} has a {color1} {pet1} that likes to eat {food1}. {name1} lives in {town1}, next door to {name2}, who "
        "grows {crop1}.",
        [
            ("What color is the {pet1}?", "color1"),
            ("What does the {pet1} like to eat?", "food1"),
            ("What does {name2} grow?", "crop1"),
        ],
    ),
    "trip": (
        "{name1} took the {ride1} from {town1} to {town2}. It left at {hour1} in the morning. In {town2}, {name1} "
        "bought {food1} for {name2} and then went home by {ride2}.",
        [
            ("What did {name1} buy?", "food1"),
            ("At what time in the morning did the {ride1} leave?", "hour1"),
            ("For whom did {name1} buy the {food1}?", "name2"),
        ],
    ),
    "shop": (
        "At the shop of {name1}, a {thing1} costs {number1} dollars and a {thing2} costs {number2} dollars. The shop "
        "is closed on {day1}.",
        [
            ("How much does the {thing1} cost?", "number1"),
            ("How much does the {thing2} cost?", "number2"),
            ("On which day is the shop closed?", "day1"),
        ],
    ),
    "book": (
        'The novel "The {tale1}" was written by {name1} in {year1}. {name2} translated it in {year2}. It tells the '
        "story of a {job1} who moves to {town1}.",
        [
            ('Who wrote "The {tale1}"?', "name1"),
            ("Who translated the novel?", "name2"),
            ("Which town does the {job1} move to?", "town1"),
        ],
    ),
    "lost": (
        "On {day1}, {name1} lost a {color1} {thing1} in {town1}. Two days later {name2}, a {job1}, found it under a "
        "tree and was given {number1} dollars as a reward.",
        [
            ("What did {name1} lose?", "thing1"),
            ("Who found the {thing1}?", "name2"),
            ("How many dollars was the reward?", "number1"),
        ],
    ),
    "village": (
        "{town1} is a village with {number1} houses and a {color1} church. The church was built in {year1}. "
        "Most people there grow {crop1}. The nearest city is {town2}.",
        [
            ("What do most people in {town1} grow?", "crop1"),
            ("Which city is nearest to {town1}?", "town2"),
            ("When was the church built?", "year1"),
        ],
    ),
    "party": (
        "{name1} will have a birthday party in {month1}. {name2} will bring {food1}, and {name3} will bring {food2}. "
        "The present is a {color1} {thing1}.",
        [
            ("What will {name2} bring?", "food1"),
            ("Who will bring {food2}?", "name3"),
            ("In which month is the party?", "month1"),
        ],
    ),
    "team": (
        "The {town1} team has {number1} players. They wear {color1} shirts, and their captain is {name1}. They train "
        "every {day1}.",
        [
            ("Who is the captain of the {town1} team?", "name1"),
            ("What color are the shirts of the players?", "color1"),
            ("On which day does the team train?", "day1"),
        ],
    ),
}


def extract() -> list[Row]:
    """Wrong are all words of the answer's table that the passage has and the question has not."""
    draw, rows = Draw(1), []
    for name, (passage, questions) in EXTRACT.items():
        for number in range(12):
            slots = draw.slots()
            question, answer = questions[number % len(questions)]
            table = answer.rstrip("1234")
            told, asked = (set(re.findall(rf"{{({table}\d)}}", text)) for text in (passage, question))
            check: Row = {"says": [slots[answer]]}
            if table == "hour":
                check["says"].append(str(6 + TABLES["hour"].index(slots[answer])))
            if rivals := sorted(told - asked - {answer}):
                check["lacks"] = [slots[rival] for rival in rivals]
            prompt = f"Passage: {passage}\n\nQuestion: {question}\n\nAnswer:".format(**slots)
            rows.append(row("extract", name, number, prompt, 32, check))
    return rows


# name: (question, "key=answer" facts separated by ";", several accepted answers by "/")
KNOWLEDGE = {
    "capital": (
        "What is the capital of {}?",
        "France=Paris;Italy=Rome;Japan=Tokyo;Spain=Madrid;Germany=Berlin;Russia=Moscow;Egypt=Cairo;Greece=Athens;"
        "China=Beijing;England=London;Portugal=Lisbon;Austria=Vienna;Poland=Warsaw;Ireland=Dublin;India=New Delhi;"
        "Canada=Ottawa;Norway=Oslo;Sweden=Stockholm;Cuba=Havana;Kenya=Nairobi",
    ),
    "opposite": (
        'What is the opposite of "{}"?',
        "hot=cold;big=small/little/tiny;up=down;fast=slow;happy=sad/unhappy;light=dark/heavy;old=new/young;day=night;"
        "open=closed/close/shut;wet=dry;early=late;rich=poor;strong=weak;left=right;full=empty;hard=soft/easy;"
        "long=short;high=low;clean=dirty;near=far",
    ),
    "sort": (
        "What kind of thing is {}?",
        "an apple=fruit;a banana=fruit;a rose=flower;a tulip=flower;a salmon=fish;a trout=fish;an eagle=bird;"
        "a sparrow=bird;a violin=instrument;a piano=instrument;a hammer=tool;an oak=tree;a bus=vehicle;"
        "a sofa=furniture;a spider=arachnid/insect",
    ),
    "science": (
        "{}?",
        "What gas do humans need to breathe=oxygen;What is frozen water called=ice;Which star is closest to the "
        "Earth=sun;What force pulls things to the ground=gravity;Which planet is known as the Red Planet=Mars;What is "
        "the largest planet in the solar system=Jupiter;What is H2O commonly called=water;Which organ pumps blood "
        "through the body=heart;Which organ do we think with=brain;What do bees make that people eat=honey;Which gas "
        "do plants take from the air=carbon dioxide/CO2;What is the hardest natural material=diamond/diamonds;Which "
        "animal is the largest on Earth=blue whale/whale;What does a thermometer measure=temperature;What is the "
        "chemical symbol of oxygen=O;Which gas fills most of the air=nitrogen;What do we call the study of living "
        "things=biology;Which sense do we use our ears for=hearing/hear;At how many degrees Celsius does water "
        "boil=100;What is the center of an atom called=nucleus",
    ),
    "world": (
        "{}?",
        "Which continent is Egypt in=Africa;Which continent is Brazil in=South America;Which continent is China "
        "in=Asia;Which continent is Germany in=Europe;Which language do people speak in Spain=Spanish;Which language "
        "do people speak in France=French;Which language do people speak in Brazil=Portuguese;What is the largest "
        "ocean on Earth=Pacific;What money do people use in Japan=yen;Who wrote Romeo and Juliet=Shakespeare;Who "
        "painted the Mona Lisa=Leonardo/da Vinci;Who was the first president of the United States=Washington;What is "
        "the tallest mountain in the world=Everest;What is the longest river in Africa=Nile;Which country has the "
        "city of New York=United States/USA/America/US",
    ),
    "count": (
        "How many {}?",
        "days are in a week=seven/7;months are in a year=twelve/12;legs does a spider have=eight/8;minutes are in an "
        "hour=sixty/60;hours are in a day=twenty four/24;legs does a dog have=four/4;sides does a triangle "
        "have=three/3;wheels does a bicycle have=two/2;letters are in the English alphabet=twenty six/26;continents "
        "are there=seven/7",
    ),
}
RIVALS = {"capital", "sort"}  # here the other answers of the table count against a reply


def knowledge() -> list[Row]:
    rows = []
    for name, (question, facts) in KNOWLEDGE.items():
        pairs = [fact.split("=") for fact in facts.split(";")]
        every = dict.fromkeys(answer for _, answers in pairs for answer in answers.split("/"))
        for number, (key, answers) in enumerate(pairs):
            accepted = answers.split("/")
            check: Row = {"says": accepted}
            if name in RIVALS:
                check["lacks"] = [answer for answer in every if answer not in accepted]
            rows.append(row("knowledge", name, number, question.format(key), 24, check))
    return rows
