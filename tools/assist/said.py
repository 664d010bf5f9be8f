"""Commands as people say them, written by hand and never trained on, as rows for `unmask bench assist`.

python tools/assist/said.py > runs/assist-data/said.jsonl
"""

from __future__ import annotations

import json
import re

HOMES = {
    "flat": """areas: Kitchen, Living Room, Bedroom, Bathroom
light: Ceiling Light, Desk Lamp, Bedside Lamp
media_player: TV, Radio
climate: Thermostat
switch: Coffee Machine, Kettle
lock: Front Door
vacuum: Roomba
todo: Chores
scene: Movie Night
fan: Tower Fan
person: Anna, Tom""",
    "house": """areas: Hallway, Nursery, Garage, Office, Dining Room, Guest Room
floors: Upstairs, Downstairs
light: Floor Lamp, Porch Light, Fairy Lights
cover: Garage Door, Patio Awning
media_player: Sonos, Projector
climate: Heat Pump
lawn_mower: Shaun
lock: Back Door
todo: Weekend Jobs
script: Good Night
valve: Sprinkler
weather: Forecast Home""",
}
SAID = """
flat | turn the kitchen lights on | HassTurnOn area=Kitchen domain=light
flat | Switch off the desk lamp, please. | HassTurnOff name=Desk_Lamp
flat | could you put the kettle on | HassTurnOn name=Kettle
flat | lights out in the bathroom | HassTurnOff area=Bathroom domain=light
flat | make the living room lights blue | HassLightSet area=Living_Room domain=light color=blue
flat | dim the bedside lamp to 20 percent | HassLightSet name=Bedside_Lamp brightness=20
flat | desk lamp at thirty percent | HassLightSet name=Desk_Lamp brightness=30
flat | set the thermostat to 21 and a half degrees | HassClimateSetTemperature name=Thermostat temperature=21.5
flat | make it 19 degrees in the bedroom | HassClimateSetTemperature area=Bedroom temperature=19
flat | what's the temperature in the bathroom? | HassClimateGetTemperature area=Bathroom
flat | how warm is it in the living room | HassClimateGetTemperature area=Living_Room
flat | set a timer for ten minutes | HassStartTimer minutes=10
flat | 5 minute timer | HassStartTimer minutes=5
flat | start an egg timer for 7 minutes | HassStartTimer name=egg minutes=7
flat | timer for an hour and 15 minutes | HassStartTimer hours=1 minutes=15
flat | cancel the timer | HassCancelTimer
flat | how much time is left on my pasta timer | HassTimerStatus name=pasta
flat | add two more minutes to the pasta timer | HassIncreaseTimer name=pasta minutes=2
flat | pause the timer | HassPauseTimer
flat | kill all timers | HassCancelAllTimers
flat | add oat milk to my shopping list | HassShoppingListAddItem item=oat_milk
flat | put toilet paper on the shopping list | HassShoppingListAddItem item=toilet_paper
flat | add water the plants to my chores list | HassListAddItem name=Chores item=water_the_plants
flat | what time is it | HassGetCurrentTime
flat | what's today's date | HassGetCurrentDate
flat | is the front door locked? | HassGetState name=Front_Door state=locked
flat | lock the front door | HassTurnOn name=Front_Door
flat | unlock the front door | HassTurnOff name=Front_Door
flat | where is Anna? | HassGetState name=Anna
flat | start the roomba | HassVacuumStart name=Roomba
flat | send roomba home | HassVacuumReturnToBase name=Roomba
flat | movie night | HassTurnOn name=Movie_Night
flat | activate the movie night scene | HassTurnOn name=Movie_Night
flat | pause the tv | HassMediaPause name=TV
flat | mute the radio | HassMediaPlayerMute name=Radio
flat | next song | HassMediaNext
flat | set the tv volume to 35 | HassSetVolume name=TV volume_level=35
flat | set the tower fan to 40% | HassFanSetSpeed name=Tower_Fan percentage=40
flat | never mind | HassNevermind
flat | tell me a joke |
flat | who won the world cup in 1998 |
flat | call mum |
flat | turn of the cofee machine | HassTurnOff name=Coffee_Machine
flat | TURN ON THE TOWER FAN | HassTurnOn name=Tower_Fan
flat | turn off the tv and the radio | HassTurnOff name=TV; HassTurnOff name=Radio
flat | turn on the coffee machine and set a timer for 4 minutes | HassTurnOn name=Coffee_Machine; HassStartTimer minutes=4
flat | turn off all the lights in the kitchen and lock the front door | HassTurnOff area=Kitchen domain=light; HassTurnOn name=Front_Door
flat | set bedroom to 18 degrees, then turn off the bedside lamp | HassClimateSetTemperature area=Bedroom temperature=18; HassTurnOff name=Bedside_Lamp
flat | add eggs to the shopping list and tell me the time | HassShoppingListAddItem item=eggs; HassGetCurrentTime
flat | turn on the desk lamp, make it red and switch off the ceiling light | HassTurnOn name=Desk_Lamp; HassLightSet name=Desk_Lamp color=red; HassTurnOff name=Ceiling_Light
house | turn on the hallway lights | HassTurnOn area=Hallway domain=light
house | nursery lights off | HassTurnOff area=Nursery domain=light
house | switch off every light upstairs | HassTurnOff floor=Upstairs domain=light
house | turn off the lights downstairs | HassTurnOff floor=Downstairs domain=light
house | I want the office at 22 degrees | HassClimateSetTemperature area=Office temperature=22
house | turn the heat pump to 20 | HassClimateSetTemperature name=Heat_Pump temperature=20
house | set the brightness in the dining room to 60% | HassLightSet area=Dining_Room domain=light brightness=60
house | can you turn the fairy lights green | HassLightSet name=Fairy_Lights color=green
house | open the garage door | HassTurnOn name=Garage_Door
house | close the garage door | HassTurnOff name=Garage_Door
house | set the patio awning to 50% | HassSetPosition name=Patio_Awning position=50
house | mow the lawn | HassLawnMowerStartMowing
house | send Shaun back to its dock | HassLawnMowerDock name=Shaun
house | what's the weather like | HassGetWeather
house | how's the weather outside today? | HassGetWeather
house | run good night | HassTurnOn name=Good_Night
house | play some jazz on the sonos | HassMediaSearchAndPlay name=Sonos search_query=jazz
house | skip this song on sonos | HassMediaNext name=Sonos
house | sonos volume 15 | HassSetVolume name=Sonos volume_level=15
house | is the porch light on? | HassGetState name=Porch_Light state=on
house | are any lights on upstairs | HassGetState floor=Upstairs domain=light state=on
house | remind me what day it is | HassGetCurrentDate
house | set a 30 second timer | HassStartTimer seconds=30
house | set a timer called laundry for one hour | HassStartTimer name=laundry hours=1
house | cancel my laundry timer | HassCancelTimer name=laundry
house | announce dinner is ready | HassBroadcast message=dinner_is_ready
house | add fix the fence to weekend jobs | HassListAddItem name=Weekend_Jobs item=fix_the_fence
house | order a pizza |
house | what is the capital of France? |
house | turn on the porch light and the fairy lights | HassTurnOn name=Porch_Light; HassTurnOn name=Fairy_Lights
house | switch on the projector, turn off the floor lamp and close the garage door | HassTurnOn name=Projector; HassTurnOff name=Floor_Lamp; HassTurnOff name=Garage_Door
house | lock the back door, turn off the lights in the office and set a timer for 20 minutes and what's the weather | HassTurnOn name=Back_Door; HassTurnOff area=Office domain=light; HassStartTimer minutes=20; HassGetWeather
house | please turn off the hallway lights and the garage lights | HassTurnOff area=Hallway domain=light; HassTurnOff area=Garage domain=light
"""


def call(text: str) -> dict[str, object]:
    """`Intent name=value …`, blanks of values as underscores."""
    intent, *pairs = text.split()
    arguments = dict(pair.split("=") for pair in pairs)
    plain = {name: value.replace("_", " ") for name, value in arguments.items()}
    numbers = {name: json.loads(value) for name, value in plain.items() if re.fullmatch(r"\d+(\.\d+)?", value)}
    return {"name": intent, "arguments": {**plain, **numbers}}


def main() -> None:
    for line in SAID.strip().splitlines():
        home, said, calls = (part.strip() for part in (line + " ").split("|"))
        made = [call(text) for text in calls.split(";") if text.strip()]
        response = json.dumps(made, separators=(",", ":"))
        print(json.dumps({"prompt": f"{HOMES[home]}\n> {said}\n", "response": response}))


if __name__ == "__main__":
    main()
