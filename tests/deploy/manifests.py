"""Validates the manifests on stdin against the schemas of Kubernetes, strictly, for each version that is an argument.

Prints them as JSON. Of custom resources no package has the schemas: the test looks at their fields itself.
"""

import json
import sys

import kubernetes_validate
import yaml

CUSTOM = ("monitoring.coreos.com/", "cert-manager.io/", "apiserver.config.k8s.io/")

manifests = [manifest for manifest in yaml.safe_load_all(sys.stdin) if manifest]
for manifest in manifests:
    name = f"{manifest['kind']} {manifest.get('metadata', {}).get('name')}"
    if manifest["apiVersion"].startswith(CUSTOM):
        continue
    for version in sys.argv[1:]:
        try:
            kubernetes_validate.validate(manifest, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = ".".join(str(part) for part in error.path)
            sys.exit(f"Kubernetes {version}, {name}: {where}: {error.message}")
json.dump(manifests, sys.stdout)
