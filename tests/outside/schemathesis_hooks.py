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


@schemathesis.hook
def before_call(context, case, kwargs):
    """A log that is followed goes on for ever, with a comment now and then: the suites follow it."""
    if case.path.endswith("/logs") and case.query and str(case.query.get("follow")).lower() == "true":
        case.query = {name: value for name, value in case.query.items() if name not in ("follow", "verdicts")}
