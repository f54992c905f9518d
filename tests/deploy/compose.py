"""Checks docker-compose.yml beyond its schema: what is reached from where, what each service may do, what it mounts."""

import json
import os
import subprocess
import sys

import yaml


def compose_config():
    """The file as Docker Compose understands it, with every profile. It checks the schema itself."""
    # None of the caller's variables: the file has to do without.
    environment = {"PATH": os.environ["PATH"]}
    command = ["docker-compose", "--env-file", "/dev/null", "--profile", "*", "config", "--format", "json"]
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # It only warns of a variable that nobody sets: a dollar of a shell command that should have been two.
    if said.returncode or said.stderr:
        sys.exit(f"docker-compose.yml: {said.stderr}")
    return json.loads(said.stdout)


def problems_of(name, service, config):
    for port in service.get("ports", []):
        if port.get("host_ip") != "127.0.0.1":
            yield f"publishes port {port['target']} on {port.get('host_ip', 'every address')}"
        if all(config["networks"][network].get("internal") for network in service["networks"]):
            yield "publishes a port from internal networks alone, which has no effect"
    if service.get("network_mode") or service.get("privileged") or service.get("cap_add"):
        yield "has more of the machine than it needs"
    if not service.get("read_only"):
        yield "can write to its root file system"
    if service.get("cap_drop") != ["ALL"]:
        yield "has capabilities"
    if service.get("security_opt") != ["no-new-privileges:true"]:
        yield "may gain privileges"
    image = service["image"]
    if "build" not in service and (":" not in image or image.endswith(":latest")):
        yield f"takes whatever {image} is today"
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
        has_healthcheck = "build" in config["services"][other] or "test" in config["services"][other].get("healthcheck", {})
        if needed["condition"] == "service_healthy" and not has_healthcheck:
            yield f"waits for ever: {other} has no healthcheck"


def scrape_problems(config):
    """What Prometheus scrapes, and where Grafana asks, has to be a service that it can reach."""
    scraped = yaml.safe_load(open("deploy/prometheus/prometheus.yml", encoding="utf-8"))["scrape_configs"]
    asked = yaml.safe_load(open("deploy/grafana/provisioning/datasources/prometheus.yml", encoding="utf-8"))["datasources"]
    pairs = [("prometheus", target) for job in scraped for group in job["static_configs"] for target in group["targets"]]
    pairs += [("grafana", source["url"].removeprefix("http://")) for source in asked]
    services = config["services"]
    for client, target in pairs:
        server = services.get(target.split(":")[0])
        if not server or not server["networks"].keys() & services[client]["networks"].keys():
            yield f"{client} cannot reach {target}"


def shell_problems(name, service):
    """What shellcheck says of commands that a shell runs."""
    scripts = []
    if service.get("entrypoint") == ["sh", "-euc"]:
        scripts += service["command"]
    test = service.get("healthcheck", {}).get("test", [])
    if test[:1] == ["CMD-SHELL"]:
        scripts.append(test[1])
    for script in scripts:
        # Compose doubles the dollars that are the shell's.
        checked = subprocess.run(["shellcheck", "--shell=sh", "-"], input=script.replace("$$", "$"), text=True, stdout=subprocess.PIPE)
        if checked.returncode:
            yield checked.stdout


def main():
    config = compose_config()
    problems = []
    for name, service in config["services"].items():
        for problem in [*problems_of(name, service, config), *shell_problems(name, service)]:
            problems.append(f"{name} {problem}")
    # Without the files of Prometheus and Grafana, that is what has been said already.
    problems = problems or list(scrape_problems(config))
    for problem in problems:
        print(f"docker-compose.yml: {problem}", file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
