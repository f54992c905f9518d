"""Checks the manifests of deploy/kubernetes, as kustomize prints them: their schemas, and that they fit together.

ServiceMonitor is not part of Kubernetes. Its schema is not checked, only the names in it.
"""

import re
import subprocess
import sys
import tempfile

import yaml

# The oldest and the newest Kubernetes version for which the manifests must be valid. The oldest one has preStop.sleep.
VERSIONS = ["1.30", "1.37"]


def validate(manifests):
    """Validates the manifests by their schemas. Unknown fields are errors."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump_all(manifests, file)
        file.flush()
        for version in VERSIONS:
            subprocess.run(["kubernetes-validate", "--strict", "--quiet", "-k", version, file.name], check=True)


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text).group(1))


def problems_of(by_kind):
    deployment = by_kind["Deployment"]["spec"]
    service = by_kind["Service"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    selectors = {
        "Deployment": deployment["selector"].get("matchLabels"),
        "Service": service["spec"].get("selector"),
        "PodDisruptionBudget": by_kind["PodDisruptionBudget"]["spec"].get("selector", {}).get("matchLabels"),
        "NetworkPolicy": by_kind["NetworkPolicy"]["spec"]["podSelector"].get("matchLabels"),
        "topologySpreadConstraints": pod["topologySpreadConstraints"][0]["labelSelector"].get("matchLabels"),
    }
    labels = deployment["template"]["metadata"]["labels"].items()
    for name, selector in selectors.items():
        if not selector or not selector.items() <= labels:
            yield f"{name} selects no pod of the Deployment, or all pods"
    monitor = by_kind["ServiceMonitor"]["spec"]
    service_labels = service["metadata"].get("labels", {}).items()
    if not monitor["selector"].get("matchLabels") or not monitor["selector"]["matchLabels"].items() <= service_labels:
        yield "ServiceMonitor selects another Service"
    if dict(service_labels).get(monitor["jobLabel"]) != "sessiond":
        yield "ServiceMonitor does not name the job sessiond, as the rules expect"

    ports = {port["name"] for port in container["ports"]}
    named = {port["targetPort"] for port in service["spec"]["ports"]}
    named |= {port["port"] for rule in by_kind["NetworkPolicy"]["spec"]["ingress"] for port in rule["ports"]}
    named |= {container[probe]["httpGet"]["port"] for probe in ["startupProbe", "livenessProbe", "readinessProbe"]}
    if not named <= ports:
        yield f"the container has no port {named - ports}"
    service_ports = {port["name"] for port in service["spec"]["ports"]}
    if not {endpoint["port"] for endpoint in monitor["endpoints"]} <= service_ports:
        yield "ServiceMonitor names a port that the Service does not have"
    expected_paths = {"startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"}
    paths = {probe: container[probe]["httpGet"]["path"] for probe in expected_paths}
    if paths != expected_paths:
        yield f"a probe has the wrong path: {paths}"

    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    needed = container["lifecycle"]["preStop"]["sleep"]["seconds"] + seconds(environment["SESSIOND_SHUTDOWN_GRACE"])
    if pod["terminationGracePeriodSeconds"] <= needed:
        yield f"pods are killed before the {needed} s that they may need to finish requests"
    target = by_kind["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    if (target["kind"], target["name"]) != ("Deployment", by_kind["Deployment"]["metadata"]["name"]):
        yield "HorizontalPodAutoscaler does not scale the Deployment"
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    if mounts != {volume["name"] for volume in pod["volumes"]}:
        yield "volumes and mounts differ"


def main():
    printed = subprocess.run(["kubectl", "kustomize", "deploy/kubernetes"], check=True, stdout=subprocess.PIPE).stdout
    manifests = list(yaml.safe_load_all(printed))
    validate([manifest for manifest in manifests if manifest["kind"] != "ServiceMonitor"])
    problems = list(problems_of({manifest["kind"]: manifest for manifest in manifests}))
    for problem in problems:
        print(f"deploy/kubernetes: {problem}", file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
