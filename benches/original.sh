#!/usr/bin/env bash
# The programs of Ocamlnet's Netmulticore beside ours, in turns: the medians of their seconds, of ours,
# theirs in ours, and the least that this is to be. Then what the original does not finish, ours alone.
#
#   bash benches/original.sh [ROUNDS]
#
# Theirs are the example programs that Debian installs (libocamlnet-ocaml-dev, libocamlnet-ocaml-doc,
# ocaml-findlib), compiled in a directory that goes again. Without these packages it says so. pipeline
# sends 2 GiB, not 16, from bytes where it was written for a compiler that let it change strings; and
# there is a second create_join, which starts and joins its ten processes 50 times.
# The original's chameneos and camlbox hang at larger numbers, so they are asked for little.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-3}
theirs=/usr/share/doc/libocamlnet-ocaml/examples
if ! command -v ocamlfind >/dev/null || ! ocamlfind query netmulticore >/dev/null 2>&1 ||
  [ ! -d "$theirs/multicore" ]; then
  echo "skipped: ocamlfind, libocamlnet-ocaml-dev or libocamlnet-ocaml-doc is not installed"
  exit 0
fi
cargo build --release --example nqueens --example chameneos --example create_join \
  --example pipeline --example mailbox_speed
ours=$PWD/target/release/examples
place=$(mktemp -d)
# Removes what a program of theirs has left in /dev/shm: they keep lists of that.
tidy() {
  find "$place" -name netplex.pmanage -exec sed -n 's/^R POSIX_SHM "\(.*\)"$/\/dev\/shm\1/p' {} + |
    xargs -r rm -f
}
trap 'tidy; rm -rf "$place"' EXIT
cd "$place"

# A program of theirs, compiled under a name, once changed by the sed script given.
compiled() {
  local source=$theirs/$1.ml name=$2
  # Read through a pipe: what the package has may be compressed.
  { cat "$source" 2>/dev/null || gzip -dc "$source.gz"; } | sed "${3:-}" >"$name.ml"
  ocamlfind ocamlopt -w -a -o "$name" -package netmulticore,netcamlbox -linkpkg "$name.ml"
}
compiled multicore/nqueens nqueens
compiled multicore/chameneos chameneos
compiled multicore/create_join create_join
compiled multicore/create_join create_more 's/^let compute _ =/let compute_once _ =/
  s/^let fork_compute/let compute _ = let r = ref 0 in for _ = 1 to 50 do r := compute_once () done; !r\n&/'
compiled multicore/pipeline pipeline '
  s/(16L \* 1024L/(2L * 1024L/
  s/String.make p_len/Bytes.make p_len/
  s/p\.\[k\] <- \(.*\)$/Bytes.set p k (\1)/
  s/add_sub_string b p /add_sub_string b (Bytes.unsafe_to_string p) /
  s/process s pos len\(.;\)/process (Bytes.unsafe_to_string s) pos len\1/'
compiled camlbox/speed speed

# Seconds that a command takes.
seconds() {
  local begun=$EPOCHREALTIME
  timeout 120 "$@" >/dev/null 2>&1 || { echo "failed: $*" >&2; tidy; }
  awk -v a="$begun" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }'
}

median() { printf '%s\n' "$@" | sort -g | sed -n "$((($# + 1) / 2))p"; }

# A name, their command, ours, and how many times as fast ours is to be, if that is said. Commands
# are words without spaces in them.
compare() {
  local name=$1 a=() b=()
  for _ in $(seq "$rounds"); do
    # shellcheck disable=SC2086
    a+=("$(seconds $2)") b+=("$(seconds $3)")
  done
  awk -v n="$name" -v a="$(median "${a[@]}")" -v b="$(median "${b[@]}")" -v goal="${4:-}" 'BEGIN {
    printf "%-20s original %7.3f s  shmkit %7.3f s  %5.1f times as fast", n, a, b, a / b
    if (goal) printf " (goal %s: %s)", goal, (a / b >= goal ? "met" : "missed")
    print ""
  }'
}

compare "nqueens 13, seq" "./nqueens -n 13 -seq" "$ours/nqueens -n 13 --mode seq"
compare "nqueens 13, sht" "./nqueens -n 13 -sht" "$ours/nqueens -n 13 --mode sht" 4
compare "nqueens 13, mp2" "./nqueens -n 13 -mp2" "$ours/nqueens -n 13 --mode mp2" 4
compare "chameneos 6000" "./chameneos 6000" "$ours/chameneos 6000"
compare "pipeline 2 GiB" "./pipeline" "$ours/pipeline --mib 2048" 5
compare "mailbox_speed 100000" "./speed 100000" "$ours/mailbox_speed 100000"
compare "create_join 10" "./create_join" "$ours/create_join --count 10 --at-once 10" 20
compare "create_join 500" "./create_more" "$ours/create_join --count 500 --at-once 10"

# What our program says it took, in milliseconds: without its own start.
told() { "$ours/nqueens" -n 13 --mode "$1" | awk '/^seconds:/ { print 1000 * $2 }'; }
seq=() sht=() mp2=()
for _ in $(seq $((5 * rounds))); do
  seq+=("$(told seq)") sht+=("$(told sht)") mp2+=("$(told mp2)")
done
awk -v s="$(median "${seq[@]}")" -v t="$(median "${sht[@]}")" -v m="$(median "${mp2[@]}")" 'BEGIN {
  printf "nqueens 13, shmkit alone: seq %.1f ms, sht %.1f ms, %.2f times as fast, mp2 %.1f ms, %.2f (goal 1.7)\n",
    s, t, s / t, m, s / m
}'
echo "chameneos 600000: $(seconds "$ours/chameneos" 600000) s"
echo "mailbox_speed 1000000: $(seconds "$ours/mailbox_speed" 1000000) s"
