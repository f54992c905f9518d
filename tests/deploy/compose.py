"""Checks docker-compose.yml beyond its schema: published ports, privileges, mounts, dependencies and scrape targets."""

import json
import os
import subprocess
import sys

import yaml


def compose_config():
    """Returns the file as Docker Compose reads it, with every profile. Docker Compose checks the schema."""
    # The caller's variables are not passed on: the file must not need them.
    environment = {"PATH": os.environ["PATH"]}
    command = ["docker-compose", "--env-file", "/dev/null", "--profile", "*", "config", "--format", "json"]
    result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # An unset variable is only a warning. It is a `$` in a shell command that should have been `$$`.
    if result.returncode or result.stderr:
        sys.exit(f"docker-compose.yml: {result.stderr}")
    return json.loads(result.stdout)


def problems_of(name, service, config):
    for port in service.get("ports", []):
        if port.get("host_ip") != "127.0.0.1":
            yield f"publishes port {port['target']} on {port.get('host_ip', 'every address')}"
        if all(config["networks"][network].get("internal") for network in service["networks"]):
            yield "publishes a port but is on internal networks only, where that has no effect"
    if service.get("network_mode") or service.get("privileged") or service.get("cap_add"):
        yield "has more privileges than it needs"
    if not service.get("read_only"):
        yield "can write to its root file system"
    if service.get("cap_drop") != ["ALL"]:
        yield "has capabilities"
    if service.get("security_opt") != ["no-new-privileges:true"]:
        yield "may gain privileges"
    image = service["image"]
    if "build" not in service and (":" not in image or image.endswith(":latest")):
        yield f"does not pin the version of {image}"
    for volume in service.get("volumes", []):
        if volume["type"] != "bind":
            continue
        if not os.path.exists(volume["source"]):
            yield f"mounts {volume['source']}, which does not exist"
        if not volume.get("read_only"):
            yield f"can write to {volume['source']}"
    for other, needed in service.get("depends_on", {}).items():
        if needed["condition"] == "service_started":
            yield f"starts before {other} is ready"
        dependency = config["services"][other]
        has_healthcheck = "build" in dependency or "test" in dependency.get("healthcheck", {})
        if needed["condition"] == "service_healthy" and not has_healthcheck:
            yield f"never starts: {other} has no healthcheck"


def scrape_problems(config):
    """Yields targets of Prometheus and data sources of Grafana that are not a service that they can reach."""
    prometheus, grafana = "deploy/prometheus/prometheus.yml", "deploy/grafana/provisioning/datasources/prometheus.yml"
    jobs = yaml.safe_load(open(prometheus, encoding="utf-8"))["scrape_configs"]
    sources = yaml.safe_load(open(grafana, encoding="utf-8"))["datasources"]
    pairs = [("prometheus", target) for job in jobs for group in job["static_configs"] for target in group["targets"]]
    pairs += [("grafana", source["url"].removeprefix("http://")) for source in sources]
    services = config["services"]
    for client, target in pairs:
        server = services.get(target.split(":")[0])
        if not server or not server["networks"].keys() & services[client]["networks"].keys():
            yield f"{client} cannot reach {target}"


def shell_problems(name, service):
    """Yields what shellcheck reports for commands that a shell runs."""
    scripts = []
    if service.get("entrypoint") == ["sh", "-euc"]:
        scripts += service["command"]
    test = service.get("healthcheck", {}).get("test", [])
    if test[:1] == ["CMD-SHELL"]:
        scripts.append(test[1])
    for script in scripts:
        # In the compose file, `$$` stands for a `$` of the shell.
        command, script = ["shellcheck", "--shell=sh", "-"], script.replace("$$", "$")
        checked = subprocess.run(command, input=script, text=True, stdout=subprocess.PIPE)
        if checked.returncode:
            yield checked.stdout


def main():
    config = compose_config()
    problems = []
    for name, service in config["services"].items():
        for problem in [*problems_of(name, service, config), *shell_problems(name, service)]:
            problems.append(f"{name} {problem}")
    # If the files of Prometheus and Grafana are missing, the check of the mounts has reported that already.
    problems = problems or list(scrape_problems(config))
    for problem in problems:
        print(f"docker-compose.yml: {problem}", file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
