#!/usr/bin/env bash
# Runs a command where Docker answers: this machine's, or else one that ../shared/rig starts for the
# command alone, with local stand-ins for the images that no registry can be asked for.
set -euo pipefail
rig=$(cd "$(dirname "$0")/../../.." && pwd)/shared/rig

docker_answers() { docker info && docker compose version; } >/dev/null 2>&1

stop_by_pid_file() { # FILE: ends the process that it names, and waits for it
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 0
    kill "$pid" 2>/dev/null || return 0
    timeout 60 tail --pid="$pid" -f /dev/null || true
}

if ! docker_answers; then
    if [ ! -x "$rig/start-docker.sh" ]; then
        echo "skipped: no Docker answers here, and ../shared/rig, which could start one, is missing" >&2
        exit 0
    fi
    trap 'stop_by_pid_file /run/docker-rig-wheels.pid; stop_by_pid_file /run/docker.pid' EXIT
    "$rig/start-docker.sh"
fi
if [ -e /run/docker-rig.env ]; then
    "$rig/build-base-images.sh" --cpu python:3.11-slim-bookworm postgres:17-bookworm
fi
"$@"
