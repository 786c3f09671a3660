"""Teaches schemathesis the media types of the API that it does not know: newline-delimited JSON, and WebAssembly."""

import json

import schemathesis


@schemathesis.serializer("application/x-ndjson")
def ndjson(context, value):
    lines = value if isinstance(value, list) else [value]
    return "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines).encode()


@schemathesis.serializer("application/wasm")
def wasm(context, value):
    """None of them is a component: what refuses them is looked at, and the suites upload real ones."""
    return value if isinstance(value, bytes) else json.dumps(value).encode()
