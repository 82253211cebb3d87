"""Checks that the OpenAPI document is one, and that its examples are what its schemas describe."""

import json
import sys

from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

with open(sys.argv[1], encoding="utf-8") as file:
    document = json.load(file)
validate(document, cls=OpenAPIV31SpecValidator)

examples = 0
for path, item in document["paths"].items():
    for method, operation in item.items():
        contents = [("request", operation.get("requestBody", {}).get("content", {}))]
        contents += [(status, answer.get("content", {})) for status, answer in operation["responses"].items()]
        for which, content in contents:
            for media in content.values():
                shown = [media["example"]] if "example" in media else []
                shown += [example["value"] for example in media.get("examples", {}).values()]
                # References are looked up from the top of the schema.
                schema = {**media["schema"], "components": document["components"]}
                for example in shown:
                    examples += 1
                    for error in Draft202012Validator(schema).iter_errors(example):
                        sys.exit(f"{method} {path}, {which}: {error.message}")
print(f"{examples} examples")
