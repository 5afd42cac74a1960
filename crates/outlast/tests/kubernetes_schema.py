"""Checks manifests against the schemas that Kubernetes publishes.

Reads one JSON array from standard input: [{"name", "yaml", "json", "valid"}]. Of each, the YAML (if any) must say what
the JSON says, and the schemas must agree that it is valid, or refuse it when `valid` is false.
"""

import json
import sys

import kubernetes_validate
import yaml

# The first with gRPC probes for everybody, and the newest that the package has.
VERSIONS = ["1.27", kubernetes_validate.latest_version()]


def refusal(manifest, version):
    try:
        kubernetes_validate.validate(manifest, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(str(step) for step in error.path)}: {error.message}"
    return None


def main():
    faults = []
    for case in json.load(sys.stdin):
        manifest = case["json"]
        if case["yaml"] is not None and yaml.safe_load(case["yaml"]) != manifest:
            faults.append(f"{case['name']}: the YAML does not say what the JSON says")
        for version in VERSIONS:
            why = refusal(manifest, version)
            if case["valid"] and why:
                faults.append(f"{case['name']}: Kubernetes {version} refuses it: {why}")
            if not case["valid"] and not why:
                faults.append(f"{case['name']}: Kubernetes {version} takes it, but should not")
    print("\n".join(faults))
    return 1 if faults else 0


sys.exit(main())
