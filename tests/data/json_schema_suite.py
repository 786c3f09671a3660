"""Packs the required tests of the official JSON-Schema-Test-Suite into json-schema-suite.json.gz.

    pip download jsonschema==4.26.0 --no-binary jsonschema --no-deps && tar xzf jsonschema-4.26.0.tar.gz
    python3 tests/data/json_schema_suite.py jsonschema-4.26.0/json tests/data/json-schema-suite.json.gz

Nothing of a required test is left out: each file directly in a draft's folder, every remote schema of the suite.
"""

import gzip
import json
import pathlib
import sys

DRAFTS = {"draft2020-12": "2020-12", "draft2019-09": "2019-09", "draft7": "7", "draft6": "6", "draft4": "4"}

suite, packed = pathlib.Path(sys.argv[1]), sys.argv[2]
tests = {
    name: {file.stem: json.loads(file.read_text()) for file in sorted((suite / "tests" / folder).glob("*.json"))}
    for folder, name in DRAFTS.items()
}
remotes = {
    "http://localhost:1234/" + file.relative_to(suite / "remotes").as_posix(): json.loads(file.read_text())
    for file in sorted((suite / "remotes").rglob("*.json"))
}
whole = {"licence": (suite / "LICENSE").read_text(), "tests": tests, "remotes": remotes}
text = json.dumps(whole, ensure_ascii=False, separators=(",", ":"))
with open(packed, "wb") as out, gzip.GzipFile(fileobj=out, mode="wb", compresslevel=9, mtime=0, filename="") as archive:
    archive.write(text.encode())
for name, files in tests.items():
    groups = [group for file in files.values() for group in file]
    print(name, len(files), "files", len(groups), "schemas", sum(len(group["tests"]) for group in groups), "tests")
