"""Passes the messages whose header has the wanted value, drops the others."""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import types

# What a column's length says of a message that has no such header.
ABSENT = 0xFFFFFFFF

header = ""
wanted = b""


class Stage(exports.Stage):
    def configure(self, text: str) -> None:
        global header, wanted
        config = json.loads(text)
        for name in ("header", "value"):
            if not isinstance(config.get(name), str):
                raise Err(types.Error(1, f"'{name}' is missing from the config"))
        header, wanted = config["header"], config["value"].encode()

    def process(self, messages: types.Batch) -> None:
        column = messages.header_column(header)
        start = 0
        for i, length in enumerate(column.lens):
            if length == ABSENT:
                messages.drop_message(i, "another value")
                continue
            if column.data[start : start + length] != wanted:
                messages.drop_message(i, "another value")
            start += length
