"""Writes and reads CloudEvents with the official SDK. Standard input: {write: [event], read: [{headers, body}]}, an event
being its attributes with `data` (JSON) or `data_base64`, a body base64. Prints {written: [{headers, body}], read: [event]}:
each event is written in binary mode and then in structured mode, its id ending in the mode's name."""

import base64
import datetime
import json
import sys

from cloudevents.core.bindings.http import HTTPMessage, from_http, to_binary, to_structured
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent

FORMAT = JSONFormat()


def written(event):
    attributes = {name: value for name, value in event.items() if name not in ("data", "data_base64")}
    data = base64.b64decode(event["data_base64"]) if "data_base64" in event else event["data"]
    if "time" in attributes:
        attributes["time"] = datetime.datetime.fromisoformat(attributes["time"])
    for write in (to_binary, to_structured):
        message = write(CloudEvent({**attributes, "id": f"{event['id']}-{write.__name__[3:]}"}, data), FORMAT)
        yield {"headers": message.headers, "body": base64.b64encode(message.body).decode()}


def read(request):
    event = from_http(HTTPMessage(headers=request["headers"], body=base64.b64decode(request["body"])), FORMAT)
    shown = {name: value for name, value in event.get_attributes().items() if value is not None}
    if "time" in shown:
        shown["time"] = shown["time"].isoformat()
    data = event.get_data()
    if isinstance(data, str):
        data = data.encode()
    if isinstance(data, bytes):
        return {**shown, "data_base64": base64.b64encode(data).decode()}
    return {**shown, "data": data}


asked = json.load(sys.stdin)
print(
    json.dumps(
        {
            "written": [message for event in asked["write"] for message in written(event)],
            "read": [read(request) for request in asked["read"]],
        }
    )
)
