#!/usr/bin/env bash
# The programs of Ocamlnet's Netmulticore beside ours, in turns: seconds, and theirs in ours.
#
#   bash benches/original.sh [ROUNDS]
#
# Theirs are the example programs that Debian installs (libocamlnet-ocaml-dev, libocamlnet-ocaml-doc,
# ocaml-findlib), compiled in a directory that goes again. Without these packages it says so.
# The original's chameneos hangs at larger numbers, so it is asked for few meetings.
set -euo pipefail
cd "$(dirname "$0")/.."
rounds=${1:-5}
theirs=/usr/share/doc/libocamlnet-ocaml/examples/multicore
if ! command -v ocamlfind >/dev/null || ! ocamlfind query netmulticore >/dev/null 2>&1 || [ ! -d "$theirs" ]; then
  echo "skipped: ocamlfind, libocamlnet-ocaml-dev or libocamlnet-ocaml-doc is not installed"
  exit 0
fi
cargo build --release --example nqueens --example chameneos
ours=$PWD/target/release/examples
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
for program in nqueens chameneos; do
  # Read through a pipe: what the package has may be compressed.
  { cat "$theirs/$program.ml" 2>/dev/null || gzip -dc "$theirs/$program.ml.gz"; } >"$place/$program.ml"
  (cd "$place" && ocamlfind ocamlopt -w -a -o "$program" -package netmulticore,netcamlbox -linkpkg "$program.ml")
done
cd "$place"

# Seconds that a command takes.
seconds() {
  local begun=$EPOCHREALTIME
  timeout 120 "$@" >/dev/null 2>&1
  awk -v a="$begun" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }'
}

# A name, their command, ours. Medians over the rounds.
compare() {
  local name=$1 a=() b=()
  for _ in $(seq "$rounds"); do
    # Both commands are words without spaces in them.
    # shellcheck disable=SC2086
    a+=("$(seconds $2)") b+=("$(seconds $3)")
  done
  median() { printf '%s\n' "$@" | sort -g | sed -n "$(((rounds + 1) / 2))p"; }
  awk -v n="$name" -v a="$(median "${a[@]}")" -v b="$(median "${b[@]}")" \
    'BEGIN { printf "%-16s original %.3f  shmkit %.3f  %.1f times as fast\n", n, a, b, a / b }'
}

for mode in seq sht sht2 mp mp2; do
  compare "nqueens $mode" "./nqueens -n 13 -$mode" "$ours/nqueens -n 13 --mode $mode"
done
compare chameneos "./chameneos 6000" "$ours/chameneos 6000"
