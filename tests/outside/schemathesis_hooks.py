"""Teaches schemathesis the one media type of the API that it does not know: newline-delimited JSON."""

import json

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(context, value):
    lines = value if isinstance(value, list) else [value]
    return "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines).encode()
