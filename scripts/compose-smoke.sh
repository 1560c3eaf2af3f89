#!/usr/bin/env bash
# The container test: builds the image, runs the cluster of docker-compose.yml under
# a name and on ports of its own, and goes through a bad day with it under load. It
# ends with proof that no acknowledged write was lost, and leaves nothing behind.
#
# Needs docker, docker-compose (or docker compose), go. Bounded by LIMIT seconds.
# COMPOSE="docker-compose" or "docker compose" chooses, if both are there. BINARY=FILE
# takes that one (static, for Linux) instead of compiling.
set -euo pipefail
cd "$(dirname "$0")/.."

limit=${LIMIT:-240}
if [ -z "${SMOKE_INNER:-}" ]; then
  exec timeout --signal=TERM --kill-after=60 "$limit" env SMOKE_INNER=1 bash "$0" "$@"
fi

if [ -z "${COMPOSE:-}" ]; then
  if docker compose version >/dev/null 2>&1; then COMPOSE="docker compose"; else COMPOSE="docker-compose"; fi
fi
read -r -a compose <<<"$COMPOSE"

project=settsmoke$$
work=$(mktemp -d)
load_pid=
export COMPOSE_PROJECT_NAME=$project SETT_IMAGE=sett:$project

cleanup() {
  rc=$?
  trap - EXIT
  trap '' INT TERM
  set +e
  if [ $rc -ne 0 ]; then
    echo "FAIL  compose smoke, after ${SECONDS}s (exit $rc)"
    for c in $(docker ps -aq --filter "label=com.docker.compose.project=$project"); do
      echo "--- $(docker inspect -f '{{.Name}} {{.State.Status}} exit={{.State.ExitCode}} oom={{.State.OOMKilled}}' "$c")"
      docker logs --tail 40 "$c" 2>&1
    done
    [ -f "$work/load.log" ] && { echo "--- load"; tail -n 20 "$work/load.log"; }
  fi
  [ -n "$load_pid" ] && kill -KILL "$load_pid" 2>/dev/null && wait "$load_pid" 2>/dev/null
  # By label, so that this works with any compose and after any failure.
  docker ps -aq --filter "label=com.docker.compose.project=$project" | xargs -r docker rm -fv >/dev/null
  docker volume ls -q --filter "label=com.docker.compose.project=$project" | xargs -r docker volume rm -f >/dev/null
  docker network ls -q --filter "label=com.docker.compose.project=$project" | xargs -r docker network rm >/dev/null
  docker image inspect "$SETT_IMAGE" >/dev/null 2>&1 && docker rmi -f "$SETT_IMAGE" >/dev/null
  rm -rf "$work"
  exit $rc
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'echo "FAIL  ran out of its ${limit}s"; exit 124' TERM

pass() { printf 'PASS  %-62s %4ss\n' "$1" "$SECONDS"; }
smoke() { "$work/smoke" "$@"; }
# Writes must go on: 40 more acknowledged ones, which at 200/s is soon done.
goes_on() { smoke -file "$work/ledger" -n 40 -timeout 20s progress; }
address_of() { docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$(id_of "$1")"; }
id_of() { docker ps -aq --filter "label=com.docker.compose.project=$project" --filter "label=com.docker.compose.service=$1"; }

echo "compose smoke: project $project, $("${compose[@]}" version --short 2>/dev/null || echo unknown) ($COMPOSE)"

mkdir -p "$work/context/bin"
cp LICENSE "$work/context"
if [ -n "${BINARY:-}" ]; then
  cp "$BINARY" "$work/context/bin/sett"
else
  CGO_ENABLED=0 go build -trimpath -o "$work/context/bin/sett" ./cmd/sett
fi
CGO_ENABLED=0 go build -o "$work/smoke" ./scripts/smoke
docker build --target prebuilt --tag "$SETT_IMAGE" --file Dockerfile "$work/context" >"$work/build.log" 2>&1 ||
  { cat "$work/build.log" >&2; exit 1; }
user=$(docker image inspect -f '{{.Config.User}}' "$SETT_IMAGE")
case "$user" in ""|0|0:*|root*) echo "the image runs as root ('$user')" >&2; exit 1 ;; esac
pass "image built from scratch, runs as $user"

mapfile -t ports < <(smoke -n 4 ports)
export NODE1_PORT=${ports[0]} NODE2_PORT=${ports[1]} NODE3_PORT=${ports[2]} NODE4_PORT=${ports[3]}
urls=()
for p in "${ports[@]}"; do urls+=("http://127.0.0.1:$p"); done
three=("${urls[@]:0:3}")
url_of() { echo "${urls[${1#node} - 1]}"; }

"${compose[@]}" up -d --no-build >"$work/up.log" 2>&1 || { cat "$work/up.log" >&2; exit 1; }
smoke -timeout 60s ready "${three[@]}"
smoke -n 3 -timeout 30s voters "${three[@]}"
pass "three nodes formed a cluster and are ready"

smoke -timeout 20s everywhere "${three[@]}"
pass "a write through each node is read through every node"

for n in node1 node2 node3; do
  for _ in $(seq 50); do
    health=$(docker inspect -f '{{.State.Health.Status}}' "$(id_of $n)")
    [ "$health" = healthy ] && break
    sleep 0.3
  done
  [ "$health" = healthy ] || { echo "$n is $health: $(docker inspect -f '{{json .State.Health.Log}}' "$(id_of $n)")" >&2; exit 1; }
done
pass "the health check inside each container says healthy"

"$work/smoke" -file "$work/ledger" load "${three[@]}" >"$work/load.log" 2>&1 &
load_pid=$!
for _ in $(seq 50); do [ -e "$work/ledger" ] && break; sleep 0.1; done
goes_on
pass "load runs"

leader=$(smoke leader "${three[@]}")
docker kill --signal KILL "$(id_of "$leader")" >/dev/null
goes_on
now=$(smoke -not "$leader" leader "${three[@]}")
pass "leader $leader killed; $now leads and writes go on"

docker start "$(id_of "$leader")" >/dev/null
smoke -timeout 40s ready "$(url_of "$leader")"
smoke -n 3 -timeout 30s voters "${three[@]}"
goes_on
pass "$leader started again and came back by itself"

cut=$(smoke leader "${three[@]}")
network=$(docker network ls -q --filter "label=com.docker.compose.project=$project")
docker network disconnect "$network" "$(id_of "$cut")"
goes_on
now=$(smoke -not "$cut" leader "${three[@]}")
pass "leader $cut cut off the network; $now leads and writes go on"

docker network connect --alias "$cut" "$network" "$(id_of "$cut")"
smoke -timeout 40s ready "$(url_of "$cut")"
smoke -n 3 -timeout 40s voters "${three[@]}"
goes_on
pass "network healed; $cut is back"

"${compose[@]}" up -d --no-build node4 >"$work/up.log" 2>&1 || { cat "$work/up.log" >&2; exit 1; }
smoke -timeout 60s ready "${urls[@]}"
smoke -n 4 -timeout 40s voters "${urls[@]}"
goes_on
pass "a fourth node joined and became a voter"

for n in node1 node2 node3 node4; do
  docker restart -t 25 "$(id_of "$n")" >/dev/null
  smoke -timeout 40s ready "$(url_of "$n")"
  goes_on
done
smoke -n 4 -timeout 30s voters "${urls[@]}"
pass "all four restarted one by one under load"

# A node of another cluster takes the address of one that is down, so that this one
# returns on a new address and the others meet a stranger on the old one.
moved=node2
before=$(address_of $moved)
docker stop -t 25 "$(id_of $moved)" >/dev/null
stranger=$(docker run -d --label "com.docker.compose.project=$project" --label "com.docker.compose.service=stranger" \
  --network "$network" --env SETT_CLUSTER_NAME=stranger "$SETT_IMAGE")
docker start "$(id_of $moved)" >/dev/null
after=$(address_of $moved)
[ "$before" != "$after" ] || { echo "$moved got its old address $before back: nothing was tried" >&2; exit 1; }
smoke -timeout 40s ready "$(url_of $moved)"
smoke -n 4 -timeout 40s voters "${urls[@]}"
docker rm -fv "$stranger" >/dev/null
goes_on
pass "$moved moved from $before to $after and was found again"

for n in node1 node2 node3 node4; do
  [ "$(docker inspect -f '{{.State.OOMKilled}}' "$(id_of "$n")")" = false ] || { echo "$n met its memory limit" >&2; exit 1; }
done

kill -TERM "$load_pid"
wait "$load_pid" || { cat "$work/load.log" >&2; exit 1; }
load_pid=
cat "$work/load.log"
smoke -file "$work/ledger" -timeout 60s verify "${urls[@]}"
pass "no acknowledged write was lost; all four nodes are equal"
