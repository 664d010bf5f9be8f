"""Words that homes and requests are made of; even places are for training, every fourth odd one for tests alone."""

from __future__ import annotations

ROOMS = """kitchen, living room, bedroom, bathroom, den, office, hallway, garage, basement, attic, dining room, nursery,
guest room, laundry room, study, porch, patio, sunroom, library, pantry, playroom, workshop, conservatory, entryway,
master bedroom, kids room, family room, front yard, backyard, garden, balcony, closet, gym, studio, utility room, loft,
music room, media room, game room, foyer, corridor, cellar, shed, greenhouse, terrace, mudroom, powder room, ensuite,
boiler room, storage room, spare room, lounge, parlour, kitchenette, craft room, home theater, wine cellar, landing,
drawing room, dressing room, back hall, stairwell, veranda, pool house, driveway, carport, sauna, server room, bar,
reading nook, breakfast nook, sitting room, great room, barn, deck, tv room, box room, roof terrace, summer house, annex,
main bedroom, guest bedroom, guest bathroom, downstairs bathroom, upstairs bathroom, half bath, toilet, restroom,
washroom, cloakroom, walk in closet, wardrobe, front room, front porch, back porch, back garden, front garden, side
yard, courtyard, rooftop, upstairs hall, downstairs hall, hall, front hall, entrance, entry, vestibule, staircase,
lobby, reception, home office, bonus room, rec room, rumpus room, movie room, cinema, theater, arcade, hobby room,
sewing room, art room, darkroom, recording studio, exercise room, yoga room, weight room, spa, steam room, hot tub, pool
room, changing room, bath, shower room, wet room, linen closet, coat closet, larder, scullery, butler's pantry,
breakfast room, dinette, outdoor kitchen, bbq area, gazebo, pergola, orangery, winter garden, lanai, breezeway, crawl
space, attic room, machine room, electrical room, plant room, cold room, freezer room, root cellar, tool shed, bike shed
room, stable, coop, chicken coop, kennel, dog room, cat room, workspace, craft corner, meeting room, conference room,
break room, print room, waiting room, showroom, shop, warehouse, loading dock, parents room, girls room, boys room, baby
room, teen room, twin room, blue room, granny flat, in law suite, guest house, cottage, cabin, boathouse, jetty,
trailer, camper, caravan, van, tree house, man cave, she shed, snug, parlor, salon, chapel, vault"""
FLOORS = """first, second, ground, upstairs, downstairs, top, lower, upper, third, main, basement level, mezzanine,
attic level, bottom, middle, street level, garden level, fourth,
fifth, sixth, penthouse, entry level, upper level, lower level, main level, bedroom level, roof level, cellar level,
split level, garage level, guest level"""
OWNERS = """anna, ben, carlos, dana, emma, felix, grandma, grandpa, hannah, ivan, julia, kevin, lena, mum, dad, nora, oscar,
paula, ravi, sam, tom, uma, victor, wendy, yuki, zoe, mia, leo, noah, ella, max, nina, omar, priya, quentin, rosa, jack,
freya, dimitri, chen,
alex, amelia, arthur, beth, bella, charlie, chloe, connor, daisy, david, edith, elena, ethan, fatima, finn, george,
gianna, harry, henrik, ines, isaac, jamal, jasmine, john, josh, kate, kim, lily, logan, lucas, lucy, luna, marco,
martha, mateo, mom, mohammed, molly, nana, nate, opa, oma, olive, owen, pablo, penny, poppy, rachel, ryan, sarah, sean,
sofia, steve, theo, tyler, tess, violet, will, xavier, yara, zack, auntie, uncle bob, granny"""
ADJECTIVES = """left, right, big, small, old, new, tall, corner, front, back, upper, lower, blue, red, white, black, round,
outdoor, indoor, main, spare, bright, tiny, smart, wooden, glass, brass, antique, long, inner, outer, second, north,
south, east, west, green, silver, copper, second hand, narrow, wide, cozy, retro, marble, plastic,
rear, side, middle, central, far, near, low, high, short, wall mounted, portable, wireless, solar, electric, mini,
giant, square, curved, crooked, fancy, plain, vintage, modern, rustic, steel, iron, bamboo, rattan, paper, crystal,
ceramic, stone, concrete, yellow, orange, purple, pink, grey, gray, brown, gold, navy, beige, primary, secondary, first,
third, dim, loud, quiet, noisy, broken, guest, kids, family, favorite, backup, emergency, temporary, winter, summer,
cheap, good, nice, lucky, dusty old, shiny"""
NOUNS: dict[str, str] = {
    "light": """lamp, ceiling light, floor lamp, desk lamp, reading light, spotlight, chandelier, night light, strip light,
    bedside lamp, wall light, pendant, fairy lights, lantern, table lamp, sconce, led strip, counter lights, string lights,
    track lights, downlights, vanity light, porch light, flood light, mood light, closet light, star lamp, salt lamp,
    standing lamp, bulb, glow lamp, stair lights, aquarium light, mirror light, picture light, uplighter, lava lamp,
    ceiling lamp, ceiling lights, table light, desk light, bedside light, reading lamp, corner lamp, arc lamp, tripod
    lamp, clip lamp, hanging lamp, hanging light, globe light, edison bulb, filament bulb, smart bulb, hue bulb, hue
    strip, light strip, light bar, hue go, neon sign, neon light, tv backlight, backlight, bias light, under cabinet
    lights, cabinet light, island lights, sink light, stove light, hood light, shower light, bathtub light, shelf light,
    bookcase light, display light, cove light, accent light, uplight, downlight, spotlights, spots, recessed lights, can
    lights, rope light, tape light, lightbar, panel light, ring light, nanoleaf, candle light bulb, fairy light, tree
    lights, path light, pathway lights, landscape lights, step lights, security light, motion light, pond light, torch
    lamp, tiffany lamp, piano lamp, banker lamp, himalayan lamp, moon lamp, unicorn lamp, projector lamp, sunrise lamp,
    workbench light, grow light, vanity mirror light, makeup light, chandelier lights""",
    "switch": """coffee maker, kettle, heater, plug, outlet, humidifier, dehumidifier, printer, router, pump, sprinkler, radio,
    charger, toaster, air purifier, fountain, christmas tree, space heater, towel warmer, water heater, dishwasher, washer,
    dryer, slow cooker, electric blanket, aquarium pump, projector plug, freezer, mosquito trap, boiler, diffuser, extractor,
    grow box, bug zapper, doorbell chime, rice cooker, waffle iron,
    smart plug, wall plug, power strip, socket, wall switch, relay, coffee machine, espresso machine, coffee pot, tea
    kettle, water kettle, microwave, oven, air fryer, bread maker, crock pot, instant pot, blender, juicer, ice maker,
    wine cooler, fridge, washing machine, tumble dryer, hot water, immersion heater, geyser, towel rail, heated blanket,
    heating pad, heat lamp, patio heater, fire pit, fireplace, hot tub pump, pool pump, well pump, sump pump, pond pump,
    water feature, sprinklers, irrigation, drip system, air filter, ionizer, ozone generator, vaporizer, air freshener,
    scent machine, oil diffuser, dehumidifier plug, computer, pc, monitor, desk power, laptop charger, car charger, ev
    charger, bike charger, scooter charger, modem, nas, server, game console, playstation, xbox, treadmill, massage
    chair, aquarium, fish tank, terrarium, cat fountain, cat feeder, dog feeder, litter box, christmas lights plug,
    halloween decorations, bubble machine, fog machine, disco ball, siren, alarm, camera plug, baby monitor plug, 3d
    printer, soldering iron, compressor, table saw, sewing machine, iron, hair dryer, curling iron, bidet""",
    "fan": """fan, ceiling fan, tower fan, exhaust fan, desk fan, ventilator, box fan, pedestal fan, bathroom fan, extractor fan,
    attic fan, stand fan, whole house fan, window fan,
    table fan, floor fan, wall fan, standing fan, oscillating fan, bladeless fan, dyson fan, turbo fan, air circulator,
    circulator, big fan, exhaust, vent, vent fan, range hood, cooker hood, extractor hood, kitchen hood, roof fan, usb
    fan, clip fan, fresh air fan, recuperator, ventilation, heat recovery, air mover, cooling fan""",
    "media_player": """tv, speaker, stereo, soundbar, sonos, television, receiver, record player, projector, smart speaker,
    boombox, homepod, echo, nest mini, hifi, surround system, streaming box, apple tv, chromecast, jukebox, radio player,
    smart tv, roku, fire tv, fire stick, fire tv stick, google tv, android tv, nvidia shield, lg tv, samsung tv, sony
    tv, oled tv, big screen, home theater system, home cinema, av receiver, amplifier, amp, stereo system, sound system,
    sound bar, bookshelf speakers, speakers, bluetooth speaker, party speaker, wireless speaker, ceiling speakers,
    outdoor speakers, sonos one, sonos beam, sonos move, google home, nest hub, nest audio, home mini, echo dot, echo
    show, alexa, homepod mini, bose, denon, marantz, yamaha, harman kardon, turntable, cd player, dvd player, blu ray
    player, radio, internet radio, clock radio, kodi, plex, spotify, music server, squeezebox, volumio, set top box,
    cable box, media center, beamer, tablet, ipad, monitor speakers, karaoke machine, mp3 player""",
    "cover": """blinds, curtains, shade, shutters, garage door, awning, roller blind, gate, skylight, drapes, window shade,
    venetian blinds, front gate, sunshade, side gate, roof window, patio curtain, velux, screen, canopy, pergola roof,
    back gate, sliding gate, roller door, rolling door, barn door, dog door, blackout blind, blackout curtains, sheer
    curtains, shower curtain, theater curtain, vertical blinds, horizontal blinds, wooden blinds, roman shade, roman
    blinds, honeycomb shade, cellular shades, bamboo shade, roller shade, roller shades, sun shade, sun blind, sun sail,
    sail shade, roller shutter, roller shutters, rolling shutter, window shutters, storm shutters, plantation shutters,
    louvers, jalousie, marquee, window awning, sunroof, roof hatch, dome, vent window, window blinds, window curtain,
    left curtain, projector screen, projection screen, tv lift, pool cover, hot tub cover, tarp, velvet drapes, net
    curtains, door blind, overhead door, bay blinds""",
    "lock": """front door, back door, side door, garage entry, smart lock, door lock, main lock, gate lock, cellar door, patio
    door, shed lock, basement door, deadbolt, bike shed, gun safe, mailbox lock,
    front lock, back lock, side lock, porch door, balcony door, garage lock, garage side door, shed door, yard gate,
    basement lock, office door, bedroom door, bathroom door, cabinet lock, liquor cabinet, medicine cabinet, safe,
    locker, padlock, entrance door, entrance lock, main door, main entrance, main entry, apartment door, house door,
    screen door, storm door, glass door, french doors, sliding door, august lock, yale lock, nuki, keypad lock, bike
    lock, car, car doors, trunk, wine cabinet, server rack, pool gate, barn lock, attic door, pantry lock, letterbox""",
    "climate": """thermostat, air conditioner, heating, ac, radiator, heat pump, hvac, floor heating, mini split, central
    heating, air con, wall heater, climate control, aircon, underfloor heating,
    nest, ecobee, tado, honeywell, thermostats, room thermostat, wall thermostat, main thermostat, smart thermostat,
    heater control, furnace, boiler control, gas heater, electric heater, baseboard heater, panel heater, radiant
    heating, radiators, radiator valve head, trv, towel radiator, split unit, split ac, window ac, window unit, portable
    ac, air conditioning, a c, cooling, cooler, chiller, swamp cooler, evaporative cooler, daikin, mitsubishi, fujitsu,
    air handler, fan coil, zone controller, floor heat, pellet stove, infrared heater, hot tub heater, pool heater,
    sauna heater, incubator, greenhouse heater""",
    "vacuum": """vacuum, robot vacuum, roomba, hoover, vacuum cleaner, roborock, dusty, mop bot, deebot, sweeper, robby, eufy,
    vac, robovac, robot vac, robot cleaner, robot hoover, robot mop, mop, mopping robot, floor cleaner, floor robot,
    dyson, neato, braava, dreame, shark, ecovacs, i robot, xiaomi vacuum, little helper, rosie, jeeves, dustin, bender,
    wall e, r2d2, suckmaster, crumbs""",
    "scene": """movie night, dinner time, good morning, bedtime, party, relax, reading, romantic, focus mode, game day, cleaning
    mode, date night, wake up, sunset, bright day, leaving home, cozy evening, study time, yoga, rainy day, holiday mode,
    movie time, cinema mode, tv time, party time, dinner, breakfast, lunch time, cooking, baking, brunch, tea time,
    coffee time, night, good night, night light mode, sleep, sleep mode, nap time, story time, bath time, shower time,
    morning, sunrise, daylight scene, afternoon, evening, late evening, midnight, moonlight, dusk, dawn, twilight,
    candlelight, campfire, fireside, ocean, forest, jungle, tropical, aurora, savanna, spring blossom, arctic, desert
    sunset, galaxy, rainbow, disco, club, concert, gaming, streaming, work mode, office mode, meeting mode, concentrate,
    energize, chill, chill out, lounge mode, meditation, massage, spa day, romance, valentine, halloween, christmas,
    thanksgiving, easter, new year, birthday party, guests, guest mode, away, away mode, vacation, home alone, welcome
    home, i am home, leaving, bright, dimmed, soft light, warm glow, cool light, clean up, homework time, quiet time,
    play time, workout, dance, barbecue, pool party, stargazing, power saving""",
    "script": """water the plants, goodnight routine, morning routine, arrive home, lock everything, feed the cat, warm up,
    vacation check, pool cleaning, reset router, welcome guests, alarm test, open up, flush pipes,
    good night routine, bedtime routine, wake up routine, leave home, leaving routine, coming home, goodbye, goodnight,
    start the day, end the day, start my day, dinner bell, feed the dog, feed the fish tank, water the garden, water the
    lawn, start sprinklers, start coffee, make coffee, brew tea, preheat oven, start laundry, open everything, close
    everything, close the house, open the house, secure the house, night check, arm alarm, disarm alarm, all lights
    flash, flash lights, find my phone, restart server, restart everything, backup now, sync clocks, party mode, panic
    mode, storm mode, simulate presence, vacation mode, holiday lights, cool down, air out, ventilate house, boost
    heating, boost hot water, fill pool, empty trash reminder, robot patrol, camera sweep, announce dinner, school
    morning, kids bedtime, nap routine, movie setup, turn house upside down""",
    "button": """doorbell, reboot, coffee button, panic button, reset, wake pc, snooze, garage opener, call elevator, restart hub,
    door buzzer, chime, feed fish,
    door bell, front bell, ring, call button, service button, emergency button, help button, start button, stop button,
    test button, restart, restart router, restart modem, reboot server, reboot nas, restart tv, wake computer, wake
    server, wake nas, identify, locate, find remote, find keys, reset filter, filter reset, refill, dispense, feed cat,
    feed dog, feeder, flush, coffee start, make espresso, gate opener, gate button, garage button, door opener, open
    door, light button, big red button, elevator, snapshot, take snapshot, calibrate, sync, refresh, update, ding dong""",
    "lawn_mower": """mower, lawn mower, robot mower, mowbot, automower, grass cutter, lawn bot,
    lawnmower, robotic mower, robo mower, mowing robot, grass robot, husqvarna, gardena, worx, landroid, navimow, luba,
    mammotion, mowie, lawn robot, meadow mower, shaun the sheep, sheep, goat, billy, mow master, turf cutter, back yard
    mower, front lawn mower, big mower, sir mows a lot""",
    "valve": """water valve, main valve, irrigation valve, gas valve, garden valve, radiator valve, sprinkler valve, drip line,
    shutoff valve, shut off valve, water shutoff, water main, gas main, gas shutoff, water supply, mains water, inlet
    valve, outlet valve, drain valve, bypass valve, mixing valve, heating valve, boiler valve, pool valve, hot water
    valve, cold water valve, hose valve, hose, faucet, garden tap, tap, sprinkler zone, lawn zone, rose bed, veggie
    patch, tomato bed, greenhouse drip, zone one, fill valve, tank valve, irrigation zone, washing machine valve""",
    "todo": """groceries, chores, errands, packing, homework, work, garden, birthday, gifts, hardware store, ideas, reading,
    camping, weekend, cleaning, project, meals, books, movies, repairs, party, travel, office, school,
    to do, todo, tasks, my tasks, home tasks, house, household, home, home improvement, renovation, diy, maintenance,
    fixes, car, bike, pets, dog, cat, baby, kids, family, mom, dad, personal, business, meetings, studies, thesis, exam,
    assignments, study, daily, today, tomorrow, weekly, monthly, someday, bucket, wish, wishlist, christmas, christmas
    presents, presents, wedding, holiday, vacation, trip, road trip, packing for japan, beach, hiking, moving, new
    house, recipes, dinner ideas, menu, wine, drinks, pharmacy, drugstore, costco, target, walmart, aldi, tesco, ikea,
    farmers market, butcher, bakery, pantry stock, freezer, supplies, office supplies, plants, yard, pool, goals,
    habits, podcasts, songs, games, shows, watch, restaurants, places, people to call, calls, bills, returns, borrowed,
    questions, notes, stuff, inbox, spring cleaning, winter, summer, barbecue, birthday party, fitness""",
    "sensor": """outdoor temperature, humidity, power meter, air quality, washer status, battery level, solar production, water
    level, freezer temperature, co2 level, rain gauge, energy usage, wind speed, pool temperature, noise level, uv index,
    outside temperature, water temperature, aquarium temperature, fridge temperature, oven temperature, outdoor
    humidity, indoor humidity, bathroom humidity, soil moisture, plant moisture, dew point, air pressure, pressure,
    barometer, rain, rainfall, rain today, wind, wind gust, wind direction, light level, brightness sensor, illuminance,
    lux, carbon dioxide, co2, carbon monoxide, voc, radon, particulate matter, pm25, dust, pollen, pollen count, air
    quality index, aqi, smoke level, gas usage, gas meter, water usage, water meter, electricity usage, electricity
    meter, electricity price, energy price, energy today, power, power usage, power consumption, current power, solar
    power, solar yield, grid export, grid import, home battery, battery, phone battery, watch battery, tablet battery,
    car battery, car range, mileage, fuel level, tire pressure, odometer, washing machine status, dryer status,
    dishwasher status, printer ink, toner level, oil tank, salt level, tank level, pool ph, pool chlorine, well depth,
    internet speed, download speed, upload speed, ping, cpu temperature, cpu usage, disk space, memory usage, uptime,
    steps, heart rate, sleep score, weight, next alarm, next bus, commute time, travel time, trash day, moon phase,
    sunrise time, sunset time""",
    "person": """alice, bob, clara, daniel, eva, frank, greta, henry, isabel, jonas, karen, liam, maria, nick, olivia, peter,
    ruth, stefan, tina, walter,
    adam, aisha, amir, andrea, bruno, caleb, carol, cathy, chris, claire, dan, derek, diana, dylan, elaine, eli, emily,
    eric, esther, fiona, gabriel, gloria, grace, hassan, heidi, hugo, igor, irene, jake, james, jane, jenny, joe,
    julian, kai, kyle, laura, lars, linda, louis, mark, mary, matt, mike, miriam, naomi, nathan, oliver, pam, patrick,
    paul, phil, quinn, rebecca, robert, rosie, samantha, sandra, simon, sophie, susan, ted, tim, tony, vera, vincent,
    zara""",
    "binary_sensor": """motion sensor, smoke detector, leak sensor, front window, mail flag, garage motion, baby monitor, door
    sensor, phone charger, water alarm, kitchen window, cat flap, glass break, gas alarm, back window, presence,
    motion, hallway motion, front motion, stairs motion, motion detector, movement sensor, occupancy sensor, presence
    sensor, presence detector, room presence, bed sensor, bed occupancy, couch sensor, chair sensor, desk presence,
    front door sensor, back door sensor, door contact, window contact, window sensor, side window, bathroom window,
    bedroom window, attic window, skylight sensor, garage door sensor, gate sensor, gate contact, fridge door, freezer
    door, mailbox, mailbox sensor, letter flag, drawer, cabinet door, safe door, pet door, dog flap, smoke alarm, smoke
    sensor, fire alarm, heat detector, co alarm, carbon monoxide detector, gas detector, gas sensor, leak detector,
    leak, water leak, water sensor, moisture sensor, flood sensor, flood detector, sump alarm, dishwasher leak, washer
    leak, rain sensor, freeze sensor, tamper, vibration, vibration sensor, glass sensor, shock sensor, sound sensor,
    noise sensor, dog bark, baby cry, doorbell sensor, driveway sensor, car sensor, parking spot, car port, charger
    plugged in, low battery, battery low, remote battery, power outage, mains power, internet, vpn, washer running,
    dryer running, workday sensor, bin sensor, panic sensor""",
    "weather": """home, forecast, london, berlin, backyard station, openweather, lake house, paris, oslo, met, madrid,
    weather station, local weather, my station, backyard, roof station, garden station, home weather, accuweather,
    weather channel, met office, dark sky, tomorrow io, yr, new york, chicago, seattle, boston, toronto, sydney,
    melbourne, tokyo, rome, vienna, zurich, amsterdam, dublin, edinburgh, lisbon, stockholm, copenhagen, the cabin
    station, beach house, ski resort, mountain hut, airport, office town, grandmas town, the coast""",
}
ITEMS = """milk, eggs, bread, butter, apples, bananas, toilet paper, coffee, orange juice, chicken, pasta, rice, olive oil,
tomatoes, onions, a birthday cake, dish soap, batteries, light bulbs, dog food, cat litter, paper towels, flour, sugar,
green tea, oat milk, two avocados, cheddar cheese, call the dentist, water the plants, buy stamps, clean the gutters,
fix the bike, pay rent, pick up dry cleaning, order a new filter, wash the car, feed the fish, mow the lawn, six lemons,
frozen peas, peanut butter, salmon, shampoo, toothpaste, wrapping paper, a bag of ice, sparkling water, ketchup, mustard,
renew the passport, book flights, return library books, change the sheets, vacuum bags, garlic, ginger, basil, yogurt,
cereal, walnuts, honey, maple syrup, ham, sausages, beer, red wine, baby wipes, nappies, sponges, bin bags, paint brushes,
a hammer, wood screws, fertilizer, tulip bulbs, charcoal, lighter fluid, email the landlord, write thank you cards,
strawberries, blueberries, grapes, lettuce, spinach, cucumbers, carrots, celery, broccoli, cauliflower, potatoes, sweet
potatoes, mushrooms, peppers, zucchini, corn, limes, mangoes, a pineapple, a watermelon, pears, peaches, plums, ground
beef, bacon, turkey slices, shrimp, tuna cans, tofu, hummus, cream cheese, mozzarella, parmesan, sour cream, heavy
cream, almond milk, skim milk, half and half, ice cream, frozen pizza, tortillas, bagels, croissants, crackers, chips,
salsa, popcorn, pretzels, granola, oatmeal, pancake mix, baking powder, vanilla extract, cinnamon, black pepper, sea
salt, soy sauce, hot sauce, vinegar, mayonnaise, chicken stock, canned beans, chickpeas, lentils, quinoa, couscous,
noodles, tomato paste, coconut milk, decaf coffee, espresso beans, chamomile tea, lemonade, ginger ale, white wine,
tonic water, laundry detergent, fabric softener, bleach, trash bags, aluminum foil, cling film, zip bags, paper plates,
napkins, tissues, hand soap, body wash, conditioner, deodorant, razors, shaving cream, dental floss, sunscreen,
bandages, painkillers, vitamins, cough syrup, contact lens solution, cat food, bird seed, dog treats, potting soil,
light switches, duct tape, super glue, sandpaper, picture hooks, an extension cord, aa batteries, printer paper, ink
cartridges, envelopes, birthday candles, balloons, a gift card, flowers for mum, three bottles of water, a dozen eggs,
two loaves of bread, half a pound of butter, a kilo of rice, six cans of soda, call mom, call the plumber, book a
haircut, schedule the car service, pay the electricity bill, pay the credit card, file the taxes, cancel the gym
membership, renew the insurance, return the parcel, pick up the prescription, pick up the kids, drop off the package,
walk the dog, clean the fridge, clean the oven, defrost the freezer, empty the dishwasher, take out the trash, fold the
laundry, iron shirts, wash the windows, sweep the porch, rake the leaves, shovel the snow, trim the hedge, plant
tomatoes, change the air filter, test the smoke alarm, fix the leaky tap, paint the fence, oil the hinges, hang the
pictures, tidy the garage, sort the mail, back up the laptop, update the resume, reply to sarah, finish the report,
prepare the slides, study for the exam, read chapter four, practice piano, buy concert tickets, book the hotel, pack
sunscreen, charge the camera, check the tires, get new tires, visit grandma, write the speech, plan the party, send
invitations"""
MESSAGES = """dinner is ready, time to go, the bus is here, come downstairs, bedtime kids, i am home, the pizza has arrived,
lunch in ten minutes, someone is at the door, get ready for school, the game is starting, please be quiet, happy birthday,
we leave in five minutes, turn your music down, grandma is calling, breakfast is on the table, the laundry is done, good
night everyone, it is snowing outside, do not forget your lunch, meeting in the living room, movie starts now, wash your
hands, the dog needs a walk, homework first, the car is packed, taxi is waiting, put your shoes on, fire drill,
food is on the table, come and eat, time for bed, time to wake up, wake up everyone, lights out in ten minutes, we are
leaving now, the car is ready, the school bus is outside, your ride is here, the guests have arrived, mom is home, dad
is home, the package has been delivered, the mail is here, the cake is ready, dessert is served, coffee is ready, lunch
is ready, breakfast is ready, snacks in the kitchen, please come to the kitchen, everyone to the living room, family
meeting in five minutes, please tidy your rooms, brush your teeth, feed the dog, who left the fridge open, someone
please let the cat in, stop fighting, no more screens, the bathroom is free, the shower is free, the washing machine is
finished, turn off the games, keep it down please, the baby is sleeping, i am on a call, i need help upstairs, can
someone help me, there is a storm coming, close your windows, it is raining bring in the laundry, the pool is open, the
sauna is ready, the match starts in ten minutes, movie night begins now, happy new year, merry christmas,
congratulations to anna, well done everyone, good morning family, have a nice day, see you later, i am going out, i will
be back at six, i will be late, do not wait for me, we are out of milk, the wifi is down, the power is back"""
TIMERS = """pizza, eggs, pasta, laundry, tea, cookies, nap, workout, bread, roast, rice, break, homework, chicken, oven, steak,
laundry dryer, meditation, parking, game, cake, noodles, potatoes, dough, shower, sprint, brownies, dishwasher, grill, soup,
coffee, rice cooker, lasagna, muffins, pie, turkey, ribs, salmon, beans, stew, sauce, ramen, dumplings, fries, toast,
pancakes, waffles, bacon, egg, soft boiled eggs, hard boiled eggs, quinoa, oatmeal, popcorn, bathtub, washing machine,
washer, dryer, sprinkler, plants, dog walk, walk, run, yoga, stretching, plank, pushups, rest, focus, pomodoro, reading,
piano, practice, meeting, call, bus, school, timeout, time out, screen time, tv, video game, chess, round, turn, quiz,
exam, medicine, face mask, hair dye, laundry two, second pizza, bedtime, snooze, power nap, charging, bread dough,
proofing, marinade, ice bath, breaks, toothbrush"""
SEARCHES = """queen, the beatles, abbey road, thriller, bohemian rhapsody, jazz classics, chill vibes, the daily, star wars,
frozen, friends, the office, miles davis, taylor swift, dark side of the moon, workout mix, road trip, serial, inception,
breaking bad, adele, daft punk, random access memories, hotel california, nina simone, morning coffee, lo fi beats, radiolab,
toy story, the crown, mozart, beethoven, back to black, rumours, stairway to heaven, imagine, party hits, deep focus, the wire,
jaws, coldplay, parachutes, yellow, hamilton, abba, waterloo, rock anthems, hardcore history, up, lost, seinfeld, bach,
led zeppelin, pink floyd, the rolling stones, david bowie, prince, madonna, michael jackson, whitney houston, beyonce,
rihanna, drake, kendrick lamar, eminem, jay z, kanye west, billie eilish, ed sheeran, harry styles, dua lipa, lady gaga,
bruno mars, adele live, radiohead, nirvana, pearl jam, foo fighters, metallica, iron maiden, ac dc, guns n roses, oasis,
blur, the cure, depeche mode, new order, fleetwood mac, eagles, bob dylan, bob marley, johnny cash, dolly parton, elvis
presley, frank sinatra, ella fitzgerald, john coltrane, louis armstrong, chopin, vivaldi, debussy, the four seasons,
moonlight sonata, clair de lune, bolero, kind of blue, nevermind album, ok computer, purple rain, born to run, the wall,
abbey road medley, sgt pepper, blue train, graceland, tapestry, let it be, hey jude, yesterday, wonderwall, smells like
teen spirit, billie jean, purple haze, like a rolling stone, respect, superstition, dancing queen, take on me, africa by
toto, mr brightside, halo, shake it off, blinding lights, bad guy, classical music, smooth jazz, country hits, eighties
hits, nineties rock, reggae, hip hop classics, indie folk, electronic dance, christmas songs, halloween party, baby
shark, nursery rhymes, bedtime stories, whale sounds, rain sounds, white noise, ocean waves, sleep meditation, running
playlist, dinner party, road trip songs, summer vibes, sunday morning, throwback thursday, discover weekly, top fifty,
coding mix, piano covers, movie soundtracks, the godfather, pulp fiction, the matrix, titanic, casablanca, finding nemo,
shrek, moana, the lion king, harry potter, the lord of the rings, back to the future, jurassic park, game of thrones,
stranger things, the simpsons, planet earth, top gear, doctor who, sherlock, the great british bake off, peppa pig,
bluey, sesame street, this american life, the joe rogan experience, stuff you should know, freakonomics, criminal, ted
talks, planet money, bbc radio four, the news hour, classic fm, radio one, npr, capital fm"""
PERSON_ZONES = """work, school, the gym, home, the office, grandma's, the park, university, church, the store,
college, the airport, the station, the mall, the supermarket, the beach, the lake house, the cabin, grandpa's, daycare,
kindergarten, the hospital, the library, the pool, the club, downtown, the bar, the restaurant, the farm, the studio,
the warehouse, the dentist"""
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
i bought a new lamp yesterday | the lights in this movie are beautiful | fans of {x} are crazy | my timer broke | volume {x} of the encyclopedia |
who is the president of {x} | what is the population of {x} | how big is {x} | how deep is the ocean | how many people
live in {x} | when was {x} born | who invented {x} | who painted the mona lisa | who discovered {x} | what is the
longest river in the world | how many planets are there | what is the speed of light | how far away is {x} | what is the
square root of {n} | what is {n} plus {n} | what is {n} divided by {n} | what is {n} percent of {n} | is {n} a prime
number | how many ounces in a pound | how many cups in a liter | convert {n} dollars to euros | convert {n} celsius to
fahrenheit | how much is {n} pounds in kilos | what does {x} sound like | what is the opposite of {x} | what is a
synonym for {x} | use {x} in a sentence | how do you pronounce {x} | what language do they speak in {x} | tell me a joke
| tell me another joke | tell me a story | tell me a story about {x} | tell me a fun fact | tell me something
interesting about {x} | make me laugh | sing happy birthday | sing me a lullaby | beatbox for me | rap about {x} | do an
impression of {x} | recite a poem | write a song about {x} | write an essay on {x} | write a letter to {x} | draft an
email to {x} | summarize {x} for me | read my emails | read my messages | check my inbox | any new messages | do i have
any voicemails | send a message to {x} | text {x} | text {x} saying i love you | message {x} on whatsapp | reply to {x}
| forward that email to {x} | call my mom | call the office | phone {x} | dial {n} {n} {n} | video call {x} | facetime
{x} | answer the phone | hang up the call | redial | call me a cab | call an ambulance | order me an uber | get me a
taxi to {x} | order some food | order {x} from amazon | order more {x} online | reorder {x} | track my package | where
is my order | when will my parcel arrive | return my order | what is the price of {x} | how much does {x} cost | find me
a cheap {x} | compare {x} and {x} | is the shop still open | when does the pharmacy close | find a restaurant near me |
find a gas station | book a hotel in {x} | book a flight to {x} | book a table at {x} | reserve {n} seats for tonight |
buy two tickets for {x} | what movies are playing | what should i watch tonight | recommend a book | recommend a movie
like {x} | who stars in {x} | who directed {x} | who sings {x} | what are the lyrics of {x} | what song is this called
and who wrote it | how long is the movie {x} | what is {x} about | is {x} worth watching | rate {x} out of ten | give me
directions to {x} | how do i get to {x} | how long does it take to drive to {x} | take me home by the fastest route |
where is the nearest {x} | what is the traffic like on the way to {x} | when does the next bus leave | is my flight on
time | when does flight {n} land | what platform is my train | how do i make {x} | how long do i boil {x} | what can i
cook with {x} | give me a recipe for {x} | is {x} gluten free | how much protein is in {x} | what wine goes with {x} |
what substitutes {x} | how do i remove stains from a shirt | how do i tie a tie | how do i fix a flat tire | how do i
lose weight | how do i sleep better | why do cats purr | why do we dream | why is {x} so popular | what causes thunder |
do fish sleep | can penguins fly | are ghosts real | is there life on mars | what is the meaning of life | what came
first the chicken or the egg | what happened on this day | what happened in {x} | when did the war end | when is easter
| when is mother's day | how many days until christmas | what day was the {n} of may | how many weeks are in a year |
what time is it in {x} | what time does the sun set in {x} | when is sunrise in {x} | what is the time zone of {x} |
what is on my calendar | what is my next appointment | when is my next meeting | add a meeting with {x} to my calendar |
move my meeting to {n} | cancel my appointment with {x} | am i free on friday | invite {x} to the party | when is {x}'s
birthday | remind me to call {x} | remind me about {x} at {n} | remind me to take my medicine every day | what are my
reminders | wake me at {n} tomorrow | set an alarm for tomorrow morning | cancel my alarm | snooze the alarm | what
alarms do i have | turn off my alarm for tomorrow | take a note | write this down for later | read my notes | start a
voice memo | record a video | take a selfie | show me my photos | show me pictures of {x} | open the camera app | open
{x} | open spotify app settings | launch the browser | download {x} | install the update | restart yourself | turn
yourself off | update your software | what is your version | what is my ip address | is the internet down | what is the
wifi password | reset my password | log me out | delete my account | change your voice | change your name to {x} | speak
slower | speak spanish | say that again | repeat that please | what did you say | i did not catch that | can you hear me
| are you listening | stop listening | do not talk to me like that | what can you do | what are you | are you a robot |
are you human | where do you live | who made you | do you have a family | do you have feelings | do you dream | are you
smart | what is your name | what is your favorite color | what is your favorite movie | do you like music | do you like
me | will you marry me | i hate you | you are stupid | you are the best | you are not helping | that was wrong | that is
not what i said | i did not ask for that | well done | nice work | cool | awesome | great | perfect | amazing | okay
then | alright | sure | of course | absolutely | not really | i guess so | i do not know | i do not care | who cares |
whatever | why | why not | how come | really | seriously | is that so | oh my god | wow | haha | that is funny | good
evening | hello | hello there | hi | hey | howdy | what is up | how are you | how are you doing today | how was your day
| nice to meet you | long time no see | bye | goodbye | see you tomorrow | talk to you later | have a good one | happy
birthday to you | merry christmas to you | bless you | excuse me | pardon me | i am sorry | no worries | you are welcome
| my bad | i am tired | i am hungry | i am sad | i am so happy today | i have a headache | i am sick | i feel lonely | i
lost my keys | i cannot find my phone | i got a new job | i failed my exam | i am going to the store | we are having
pasta tonight | my sister is visiting next week | the dog ate {x} | the neighbours are noisy | i saw {x} yesterday | {x}
is my favorite | i really like {x} | i cannot stand {x} | have you heard about {x} | did you see the game | what is the
score | who is winning | when do the lakers play | who won the world cup | what are the odds | what is bitcoin worth |
how is the stock market doing | should i invest in {x} | what is my bank balance | transfer {n} dollars to {x} | pay {x}
{n} dollars | what is the tip on {n} dollars | split the bill by {n} | what is the news | what is in the headlines |
give me the sports news | who is running for president | what is the law on {x} | is {x} legal | what is my horoscope |
read my horoscope | tell my fortune | give me a compliment | give me a quote | motivate me | teach me something | teach
me french | quiz me on {x} | ask me a riddle | play a game with me | let us play trivia | let us play twenty questions |
rock paper scissors | think of a number | roll two dice | spin the wheel | heads or tails | choose between {x} and {x} |
should i wear {x} | what should i cook tonight | what should i name my dog | where should i go on holiday | what is a
good gift for {x} | how do i spell {x} | how many letters are in {x} | what is {x} in german | say hello in italian |
translate this to japanese | what year is the car from | how old is {x} | how tall is {x} | how much does an elephant
weigh | how fast is a cheetah | how hot is the sun | how cold is space | where is {x} located on the map | which country
has the most people | what is the tallest building | what is the currency of {x} | who is the queen of {x} | who wrote
hamlet | what is photosynthesis | what is quantum physics | how does a car engine work | how do magnets work | how do i
learn to code | write a program in python | solve this equation | what is pi | draw me a picture of {x} | generate an
image of {x} | help me with my homework | proofread my text | feed the crocodile | iron my shirt | make my bed | do the
dishes for me | take out the garbage | change the baby | bring me a beer | make me a sandwich | pour me a drink | fetch
my slippers | wash my car | walk my dog | start the spaceship | launch the rockets | activate the flux capacitor |
engage warp drive | beam me up | turn on the time machine | turn off the sun | turn off the moon | turn on the volcano |
open the pod bay doors hal | unlock the secret of life | close the deal | close my bank account | open a savings account
| open a new tab | turn over a new leaf | turn the page | turn left at the corner | turn around | switch to the other
team | light a candle on the cake | lock in the interest rate | set the record straight | set the table | play it cool |
play fair | pause and think about it | stop being silly | add fuel to the fire | add {n} and {n} | change the subject |
dim sum is delicious | the kitchen needs a new coat of paint | the bedroom was cold in {x} | my brother turned off the
tv last night | she said the lights were pretty | we should buy a new fan | i used to have a timer like that | our
thermostat is ugly | the vacuum was expensive | the curtains match the couch | somebody stole my garden gate | i dreamt
about a garage door | the music at the party was too loud last week | he never locks his bike | volume two of the book
is better | this song reminds me of {x} | temperatures are rising all over the world | it was {n} degrees in {x}
yesterday | the list of winners was published | announcing something is hard | broadcasting is a tough business | scenes
like that make me cry | the script for {x} was terrible | who is on the radio these days | what channel is the game on |
what brand is the dishwasher | how old is my fridge | how much did the tv cost | where did we buy the lamp | who
installed the thermostat | what color is the sky | do you prefer red or blue | what color should i paint the bedroom |
how many lumens do i need | is led better than halogen | how do i clean curtains | how often should i mow | is a robot
vacuum worth it | how do i descale a kettle | how do i change a light bulb | how much power does a tv use"""


def listed(text: str) -> list[str]:
    return [" ".join(word.split()) for word in text.split(",")]


def split(words: list[str], test: bool) -> list[str]:
    """The part of a list that is for tests (every fifth) or for training (the others)."""
    return [word for place, word in enumerate(words) if (place % 5 == 4) == test]
