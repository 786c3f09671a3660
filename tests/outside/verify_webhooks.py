"""Verifies webhooks from standard input with the official library: [{secret, headers, body}], the body as base64.
Prints a JSON list: for each, whether it verified."""

import base64
import json
import sys

from standardwebhooks.webhooks import Webhook, WebhookVerificationError


def verifies(case):
    try:
        Webhook(case["secret"]).verify(base64.b64decode(case["body"]), case["headers"])
        return True
    except WebhookVerificationError:
        return False


print(json.dumps([verifies(case) for case in json.load(sys.stdin)]))
