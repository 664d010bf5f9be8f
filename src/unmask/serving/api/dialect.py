"""How an API other than OpenAI's says the same things: its bodies to ours, our answers to its own."""

from __future__ import annotations

from typing import Any

from unmask.serving.api.streaming import Encoder


class Dialect:
    """OpenAI's own: everything stays as it is."""

    def request(self, body: Any) -> Any:
        """The body that is planned."""
        return body

    def whole(self, reply: dict[str, Any], body: Any) -> dict[str, Any]:
        """An answer in one piece."""
        return reply

    def encoder(self, body: Any) -> Encoder:
        """What a stream's chunks become."""
        return Encoder()
