"""Reads YAML texts (a list of strings) from standard input, and prints the documents in each of them as JSON."""

import json
import sys

import yaml

print(json.dumps([list(yaml.safe_load_all(text)) for text in json.load(sys.stdin)]))
