"""Validates manifests against the schemas of Kubernetes, strictly, for each version that is an argument.

It reads lines, each a JSON string with the YAML of manifests, and answers each with one line of JSON: the
manifests, or {"error": what is wrong}. Custom resources have no schema in a package: the test checks their fields.
"""

import functools
import json
import re
import sys

import jsonschema
import yaml
from kubernetes_validate.utils import all_versions, schema_contents
from referencing import Registry, Resource

CUSTOM = ("monitoring.coreos.com/", "cert-manager.io/", "apiserver.config.k8s.io/")


def parts(version):
    return [int(part) for part in version.split(".")[:2]]


def directory(version):
    """The schemas of the newest version that is not newer than this one."""
    known = [known for known in all_versions() if parts(known) <= parts(version)][-1]
    return f"kubernetes-json-schema/v{known}-local-strict"


@functools.cache
def definitions(version):
    contents = schema_contents(f"{directory(version)}/_definitions.json", version)
    return (Resource.from_contents(contents) @ Registry()).crawl()


# The package reads all schemas again for each manifest, which takes most of the time of these tests.
@functools.cache
def validator(kind, api_version, version):
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    schema = schema_contents(f"{directory(version)}/{kind.lower()}-{group}.json", version)
    registry = Resource.from_contents(schema) @ definitions(version)
    return jsonschema.Draft202012Validator(schema, registry=registry)


def check(text):
    manifests = [manifest for manifest in yaml.safe_load_all(text) if manifest]
    for manifest in manifests:
        kind, api_version = manifest["kind"], manifest["apiVersion"]
        if api_version.startswith(CUSTOM):
            continue
        for version in sys.argv[1:]:
            error = jsonschema.exceptions.best_match(
                validator(kind, api_version, version).iter_errors(manifest)
            )
            if error:
                name = f"{kind} {manifest.get('metadata', {}).get('name')}"
                where = ".".join(str(part) for part in error.path)
                return {"error": f"Kubernetes {version}, {name}: {where}: {error.message}"}
    return manifests


for line in sys.stdin:
    print(json.dumps(check(json.loads(line))), flush=True)
