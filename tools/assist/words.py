"""Words that homes and requests are made of; even places are for training, every fourth odd one for tests alone."""

from __future__ import annotations

ROOMS = """kitchen, living room, bedroom, bathroom, den, office, hallway, garage, basement, attic, dining room, nursery,
guest room, laundry room, study, porch, patio, sunroom, library, pantry, playroom, workshop, conservatory, entryway,
master bedroom, kids room, family room, front yard, backyard, garden, balcony, closet, gym, studio, utility room, loft,
music room, media room, game room, foyer, corridor, cellar, shed, greenhouse, terrace, mudroom, powder room, ensuite,
boiler room, storage room, spare room, lounge, parlour, kitchenette, craft room, home theater, wine cellar, landing,
drawing room, dressing room, back hall, stairwell, veranda, pool house, driveway, carport, sauna, server room, bar,
reading nook, breakfast nook, sitting room, great room, barn, deck, tv room, box room, roof terrace, summer house, annex"""
FLOORS = """first, second, ground, upstairs, downstairs, top, lower, upper, third, main, basement level, mezzanine,
attic level, bottom, middle, street level, garden level, fourth"""
OWNERS = """anna, ben, carlos, dana, emma, felix, grandma, grandpa, hannah, ivan, julia, kevin, lena, mum, dad, nora, oscar,
paula, ravi, sam, tom, uma, victor, wendy, yuki, zoe, mia, leo, noah, ella, max, nina, omar, priya, quentin, rosa, jack,
freya, dimitri, chen"""
ADJECTIVES = """left, right, big, small, old, new, tall, corner, front, back, upper, lower, blue, red, white, black, round,
outdoor, indoor, main, spare, bright, tiny, smart, wooden, glass, brass, antique, long, inner, outer, second, north,
south, east, west, green, silver, copper, second hand, narrow, wide, cozy, retro, marble, plastic"""
NOUNS: dict[str, str] = {
    "light": """lamp, ceiling light, floor lamp, desk lamp, reading light, spotlight, chandelier, night light, strip light,
    bedside lamp, wall light, pendant, fairy lights, lantern, table lamp, sconce, led strip, counter lights, string lights,
    track lights, downlights, vanity light, porch light, flood light, mood light, closet light, star lamp, salt lamp,
    standing lamp, bulb, glow lamp, stair lights, aquarium light, mirror light, picture light, uplighter, lava lamp""",
    "switch": """coffee maker, kettle, heater, plug, outlet, humidifier, dehumidifier, printer, router, pump, sprinkler, radio,
    charger, toaster, air purifier, fountain, christmas tree, space heater, towel warmer, water heater, dishwasher, washer,
    dryer, slow cooker, electric blanket, aquarium pump, projector plug, freezer, mosquito trap, boiler, diffuser, extractor,
    grow box, bug zapper, doorbell chime, rice cooker, waffle iron""",
    "fan": """fan, ceiling fan, tower fan, exhaust fan, desk fan, ventilator, box fan, pedestal fan, bathroom fan, extractor fan,
    attic fan, stand fan, whole house fan, window fan""",
    "media_player": """tv, speaker, stereo, soundbar, sonos, television, receiver, record player, projector, smart speaker,
    boombox, homepod, echo, nest mini, hifi, surround system, streaming box, apple tv, chromecast, jukebox, radio player""",
    "cover": """blinds, curtains, shade, shutters, garage door, awning, roller blind, gate, skylight, drapes, window shade,
    venetian blinds, front gate, sunshade, side gate, roof window, patio curtain, velux, screen, canopy, pergola roof""",
    "lock": """front door, back door, side door, garage entry, smart lock, door lock, main lock, gate lock, cellar door, patio
    door, shed lock, basement door, deadbolt, bike shed, gun safe, mailbox lock""",
    "climate": """thermostat, air conditioner, heating, ac, radiator, heat pump, hvac, floor heating, mini split, central
    heating, air con, wall heater, climate control, aircon, underfloor heating""",
    "vacuum": """vacuum, robot vacuum, roomba, hoover, vacuum cleaner, roborock, dusty, mop bot, deebot, sweeper, robby, eufy""",
    "scene": """movie night, dinner time, good morning, bedtime, party, relax, reading, romantic, focus mode, game day, cleaning
    mode, date night, wake up, sunset, bright day, leaving home, cozy evening, study time, yoga, rainy day, holiday mode""",
    "script": """water the plants, goodnight routine, morning routine, arrive home, lock everything, feed the cat, warm up,
    vacation check, pool cleaning, reset router, welcome guests, alarm test, open up, flush pipes""",
    "button": """doorbell, reboot, coffee button, panic button, reset, wake pc, snooze, garage opener, call elevator, restart hub,
    door buzzer, chime, feed fish""",
    "lawn_mower": """mower, lawn mower, robot mower, mowbot, automower, grass cutter, lawn bot""",
    "valve": """water valve, main valve, irrigation valve, gas valve, garden valve, radiator valve, sprinkler valve, drip line""",
    "todo": """groceries, chores, errands, packing, homework, work, garden, birthday, gifts, hardware store, ideas, reading,
    camping, weekend, cleaning, project, meals, books, movies, repairs, party, travel, office, school""",
    "sensor": """outdoor temperature, humidity, power meter, air quality, washer status, battery level, solar production, water
    level, freezer temperature, co2 level, rain gauge, energy usage, wind speed, pool temperature, noise level, uv index""",
    "person": """alice, bob, clara, daniel, eva, frank, greta, henry, isabel, jonas, karen, liam, maria, nick, olivia, peter,
    ruth, stefan, tina, walter""",
    "binary_sensor": """motion sensor, smoke detector, leak sensor, front window, mail flag, garage motion, baby monitor, door
    sensor, phone charger, water alarm, kitchen window, cat flap, glass break, gas alarm, back window, presence""",
    "weather": """home, forecast, london, berlin, backyard station, openweather, lake house, paris, oslo, met, madrid""",
}
ITEMS = """milk, eggs, bread, butter, apples, bananas, toilet paper, coffee, orange juice, chicken, pasta, rice, olive oil,
tomatoes, onions, a birthday cake, dish soap, batteries, light bulbs, dog food, cat litter, paper towels, flour, sugar,
green tea, oat milk, two avocados, cheddar cheese, call the dentist, water the plants, buy stamps, clean the gutters,
fix the bike, pay rent, pick up dry cleaning, order a new filter, wash the car, feed the fish, mow the lawn, six lemons,
frozen peas, peanut butter, salmon, shampoo, toothpaste, wrapping paper, a bag of ice, sparkling water, ketchup, mustard,
renew the passport, book flights, return library books, change the sheets, vacuum bags, garlic, ginger, basil, yogurt,
cereal, walnuts, honey, maple syrup, ham, sausages, beer, red wine, baby wipes, nappies, sponges, bin bags, paint brushes,
a hammer, wood screws, fertilizer, tulip bulbs, charcoal, lighter fluid, email the landlord, write thank you cards"""
MESSAGES = """dinner is ready, time to go, the bus is here, come downstairs, bedtime kids, i am home, the pizza has arrived,
lunch in ten minutes, someone is at the door, get ready for school, the game is starting, please be quiet, happy birthday,
we leave in five minutes, turn your music down, grandma is calling, breakfast is on the table, the laundry is done, good
night everyone, it is snowing outside, do not forget your lunch, meeting in the living room, movie starts now, wash your
hands, the dog needs a walk, homework first, the car is packed, taxi is waiting, put your shoes on, fire drill"""
TIMERS = """pizza, eggs, pasta, laundry, tea, cookies, nap, workout, bread, roast, rice, break, homework, chicken, oven, steak,
laundry dryer, meditation, parking, game, cake, noodles, potatoes, dough, shower, sprint, brownies, dishwasher, grill, soup"""
SEARCHES = """queen, the beatles, abbey road, thriller, bohemian rhapsody, jazz classics, chill vibes, the daily, star wars,
frozen, friends, the office, miles davis, taylor swift, dark side of the moon, workout mix, road trip, serial, inception,
breaking bad, adele, daft punk, random access memories, hotel california, nina simone, morning coffee, lo fi beats, radiolab,
toy story, the crown, mozart, beethoven, back to black, rumours, stairway to heaven, imagine, party hits, deep focus, the wire,
jaws, coldplay, parachutes, yellow, hamilton, abba, waterloo, rock anthems, hardcore history, up, lost, seinfeld, bach"""
PERSON_ZONES = """work, school, the gym, home, the office, grandma's, the park, university, church, the store"""
NOTHING = """what is the capital of {x} | how tall is mount everest | write a poem about {x} | tell me a joke about {x} | order a pizza |
book a taxi to the airport | who won the game last night | what is {n} times {n} | translate {x} into french | call {x} | send an email to {x} |
how do i cook {x} | remind me to buy {x} tomorrow | why is the sky blue | what should i wear today | play hide and seek with me |
how far is the moon | what does {x} mean | i am bored | you are funny | do you like {x} | sing me a song about {x} | find a recipe for {x} |
what is on tv tonight | how old are you | who are you | i had a long day | that was great | good job | look up {x} | define {x} | spell {x} |
text {x} that i am late | navigate to {x} | how many calories are in {x} | what is the stock price of {x} | flip a coin | roll a dice |
pick a number between one and {n} | is it going to be a good year | read me the news | tell me about {x} | convert {n} miles to kilometers |
i love you | my day was fine | the food was delicious | buy {x} online | reserve a table for {n} | when is the next train to {x} |
who wrote {x} | what year did {x} come out | schedule a meeting with {x} on monday | create an event called {x} | take a picture |
open youtube | start a game of chess | how is the traffic | give me advice | am i pretty | what do you think of {x} | explain {x} |
wake me up at {n} | set an alarm for {n} am | where are my keys | do i have any emails | post this to twitter | guess what |
can dogs eat {x} | what rhymes with {x} | count to {n} | is {x} healthy | how do you say {x} in spanish | let us talk about {x} |
never heard of {x} | i think {x} is overrated | are you there | hmm | uh what | no | yes | maybe later | thanks | sorry | the weather app is broken |
i bought a new lamp yesterday | the lights in this movie are beautiful | fans of {x} are crazy | my timer broke | volume {x} of the encyclopedia"""


def listed(text: str) -> list[str]:
    return [" ".join(word.split()) for word in text.split(",")]


def split(words: list[str], test: bool) -> list[str]:
    """The part of a list that is for tests (every fifth) or for training (the others)."""
    return [word for place, word in enumerate(words) if (place % 5 == 4) == test]
