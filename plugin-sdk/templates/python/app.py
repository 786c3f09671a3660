"""Passes the messages whose header has the wanted value, drops the others, and sets a field of the payload.

What a batch can do is in wit/sluice.wit: `drop-message` there is `drop_message` here. `componentize-py -d wit -w plugin
bindings types` writes modules that an editor can complete from.
"""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import log, types

config: dict = {}


class Stage(exports.Stage):
    def configure(self, text: str) -> None:
        """Called once per instance, with the stage's config. Raising `Err` refuses it."""
        config.update(json.loads(text))
        for name in ("header", "value"):
            if not isinstance(config.get(name), str):
                raise Err(types.Error(1, f"'{name}' is missing from the config"))

    def process(self, messages: types.Batch) -> None:
        """Called with up to 128 messages. One that is not touched passes as it is."""
        for i in range(messages.len()):
            if messages.header(i, config["header"]) != config["value"]:
                messages.drop_message(i, "another value")
            elif "field" in config:
                set_field(messages, i)


def set_field(messages: types.Batch, i: int) -> None:
    payload = parse(messages.payload(i))
    if not isinstance(payload, dict):
        log.write(log.Level.DEBUG, f"{messages.id(i)} is no JSON object")
        messages.reject(i, "NOT_AN_OBJECT", "the payload is no JSON object", None)
        return
    payload[config["field"]] = config.get("text", "")
    messages.set_payload(i, json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode())


def parse(payload: bytes) -> object:
    try:
        return json.loads(payload)
    except ValueError:
        return None
