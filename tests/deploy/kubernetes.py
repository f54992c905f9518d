"""Checks the manifests of deploy/kubernetes, as kustomize prints them: their schemas, that they fit together, the Pod
Security Standard `restricted`, and which pods the NetworkPolicy lets in.

ServiceMonitor is not part of Kubernetes. Its schema is not checked, only the names in it.
"""

import json
import re
import subprocess
import sys
import tempfile

import yaml

# The oldest and the newest Kubernetes version for which the manifests must be valid. The oldest one has preStop.sleep.
VERSIONS = ["1.30", "1.37"]

# Fields that the profile `baseline` of the Pod Security Standards restricts (kubernetes.io/docs/concepts/security/
# pod-security-standards). The pods use none of them, which is stricter. `host` is a field of probes and hooks.
RESTRICTED_FIELDS = {
    "hostNetwork", "hostPID", "hostIPC", "hostPath", "hostPort", "host", "privileged", "add", "procMount", "sysctls",
    "seLinuxOptions", "appArmorProfile", "windowsOptions",
}
VOLUME_TYPES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret",
}

# A cluster for the NetworkPolicy: namespaces with their labels, and a pod in each, in addition to those of sessiond.
NAMESPACES = {"sessiond": {}, "caller": {"sessiond-client": "true"}, "monitoring": {}, "other": {}}
# Who may connect to the pods of sessiond. A node can always reach its pods.
ALLOWED = {
    ("caller", "*", "TCP [3000]"),
    ("monitoring", "*", "TCP [9464]"),
    # A pod to itself.
    ("sessiond", "sessiond", "All connections"),
}


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


def fields(value):
    """Returns the names of all fields in a part of a manifest."""
    if isinstance(value, dict):
        return set(value).union(*map(fields, value.values()))
    return set().union(*map(fields, value)) if isinstance(value, list) else set()


def security_problems(pod):
    """Yields why Kubernetes would reject the pod in a namespace with the Pod Security Standard `restricted`."""
    used = fields(pod) & RESTRICTED_FIELDS
    if used:
        yield f"the pod sets {used}"
    types = set().union(*pod["volumes"]) - {"name"}
    if not types <= VOLUME_TYPES:
        yield f"the pod has volumes of the types {types - VOLUME_TYPES}"
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        context = {**pod["securityContext"], **container["securityContext"]}
        required = {
            "allowPrivilegeEscalation": False,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        for name, value in required.items():
            if context.get(name) != value:
                yield f"{container['name']}: {name} is not {value}"
        if context.get("runAsUser") == 0:
            yield f"{container['name']}: runs as root"


def network_problems(manifests):
    """Yields differences between ALLOWED and what network-config-analyzer computes from the NetworkPolicy."""
    cluster = list(manifests)
    for name, labels in NAMESPACES.items():
        labels = {"kubernetes.io/metadata.name": name, **labels}
        pod = {"containers": [{"name": "any", "image": "any"}]}
        cluster += [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}},
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"any-{name}", "namespace": name}, "spec": pod},
        ]
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/cluster.yaml", "w", encoding="utf-8") as file:
            yaml.safe_dump_all(cluster, file)
        command = ["nca", "--connectivity", folder, "--resource_list", folder, "--output_format", "json",
                   "--file_out", f"{folder}/rules.json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (result,) = json.load(open(f"{folder}/rules.json", encoding="utf-8"))
    found = set()
    for rule in result["explanation"][0]["rules"]:
        # The rules for the other pod of the namespace name it.
        if "sessiond" in rule.get("dst_ns", []) and rule["dst_pods"] != ["any-sessiond"]:
            sources = [(space, pod) for space in rule.get("src_ns", ["outside"]) for pod in rule.get("src_pods", ["*"])]
            connections = [" ".join(map(str, c.values())) if isinstance(c, dict) else c for c in rule["connection"]]
            found |= {(*source, connection) for source in sources for connection in connections}
    if found != ALLOWED:
        yield f"NetworkPolicy: allowed but not expected: {found - ALLOWED}; expected: {ALLOWED - found}"


def main():
    printed = subprocess.run(["kubectl", "kustomize", "deploy/kubernetes"], check=True, stdout=subprocess.PIPE).stdout
    manifests = list(yaml.safe_load_all(printed))
    validate([manifest for manifest in manifests if manifest["kind"] != "ServiceMonitor"])
    by_kind = {manifest["kind"]: manifest for manifest in manifests}
    problems = [
        *problems_of(by_kind),
        *security_problems(by_kind["Deployment"]["spec"]["template"]["spec"]),
        *network_problems(manifests),
    ]
    for problem in problems:
        print(f"deploy/kubernetes: {problem}", file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
