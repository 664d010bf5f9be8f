"""Asks `assist` for the calls of a spoken command, through the OpenAI client.

unmask serve assist            # in another terminal
python examples/assist_openai.py "turn off the desk lamp and set the bedroom to 21 degrees"
"""

from __future__ import annotations

import json
import sys

from openai import OpenAI

HOME = "areas: Den, Bedroom\nlight: Desk Lamp, Ceiling Light\nclimate: Thermostat"


def function(name: str, /, **arguments: str) -> dict[str, object]:
    """An OpenAI tool; arguments are names of JSON types."""
    properties = {argument: {"type": kind} for argument, kind in arguments.items()}
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}


TOOLS = [
    function("HassTurnOn", name="string", area="string", floor="string", domain="string"),
    function("HassTurnOff", name="string", area="string", floor="string", domain="string"),
    function("HassLightSet", name="string", area="string", domain="string", brightness="integer", color="string"),
    function("HassClimateSetTemperature", name="string", area="string", temperature="number"),
]


def main() -> None:
    client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")
    answer = client.chat.completions.create(
        model="assist",
        messages=[{"role": "system", "content": HOME}, {"role": "user", "content": " ".join(sys.argv[1:])}],
        tools=TOOLS,  # type: ignore[arg-type]
    )
    for call in answer.choices[0].message.tool_calls or []:
        if call.type == "function":
            print(call.function.name, json.loads(call.function.arguments))


if __name__ == "__main__":
    main()
