"""A conversation endpoint in the shape of Home Assistant's: text in, calls by `assist`, handled by Home Assistant.

    unmask serve assist
    HA_URL=http://homeassistant.local:8123 HA_TOKEN=... python examples/home_assistant.py
    curl -d '{"text": "turn off the desk lamp"}' http://127.0.0.1:8900/api/conversation/process

The token is a long-lived one of your profile page; `intent:` must stand in configuration.yaml for /api/intent/handle.
"""

from __future__ import annotations

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.request import Request, urlopen

HA_URL = os.environ.get("HA_URL", "http://homeassistant.local:8123")
UNMASK_URL = os.environ.get("UNMASK_URL", "http://127.0.0.1:8000")
MODEL = os.environ.get("MODEL", "assist")
PORT = int(os.environ.get("PORT", "8900"))
# the names that a command may use, as it reads them: a line for the areas, one for the floors, one for each domain
NAMES = """
areas: {{ areas() | map('area_name') | join(', ') }}
floors: {{ floors() | map('floor_name') | join(', ') }}
{% for domain, all in states | groupby('domain') if domain in
   ['light', 'switch', 'fan', 'cover', 'climate', 'lock', 'media_player', 'vacuum', 'todo', 'scene', 'script'] -%}
{{ domain }}: {{ all | map(attribute='name') | join(', ') }}
{% endfor %}"""


def post(url: str, body: Any, token: str = "") -> str:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=30) as answer:
        return str(answer.read().decode())


def home(token: str) -> str:
    """What the command may name; lines without names are left out."""
    lines = post(f"{HA_URL}/api/template", {"template": NAMES}, token).splitlines()
    return "\n".join(line.strip() for line in lines if line.strip() and not line.strip().endswith(":"))


def calls_of(text: str, names: str) -> list[dict[str, Any]]:
    """The calls that assist makes of a command: [{"name": intent, "arguments": {...}}]."""
    messages = [{"role": "system", "content": names}, {"role": "user", "content": text}]
    answer = json.loads(post(f"{UNMASK_URL}/v1/chat/completions", {"model": MODEL, "messages": messages}))
    return list(json.loads(answer["choices"][0]["message"]["content"]))


def process(text: str, token: str) -> dict[str, Any]:
    """The answer of /api/conversation/process."""
    said = []
    for call in calls_of(text, home(token)):
        body = {"name": call["name"], "data": call["arguments"]}
        handled = json.loads(post(f"{HA_URL}/api/intent/handle", body, token))
        said.append(handled.get("speech", {}).get("plain", {}).get("speech", "") or "Done.")
    kind = "action_done" if said else "error"
    speech = " ".join(said) or "Sorry, I do not know how to do that."
    response = {"speech": {"plain": {"speech": speech}}, "language": "en", "response_type": kind, "data": {}}
    return {"response": response, "conversation_id": None}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps(process(body["text"], os.environ.get("HA_TOKEN", ""))).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(answer)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
