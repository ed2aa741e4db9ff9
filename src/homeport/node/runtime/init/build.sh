#!/bin/sh
# Compiles the programs here for this machine's architecture, or with CC=aarch64-linux-gnu-gcc for
# that one.
# usage: build.sh [PROGRAM OUTPUT]
# Without arguments all programs that are shipped are replaced, and what each was made of written
# beside it.
set -eu
cd "$(dirname "$0")"
cc="${CC:-cc}"
machine="$("$cc" -dumpmachine | cut -d- -f1)"

build() {
    "$cc" -std=gnu11 -Os -Wall -Wextra -Werror -ffreestanding -nostdlib -static -no-pie -fno-pic \
        -fno-stack-protector -fno-asynchronous-unwind-tables -fno-unwind-tables -fno-builtin \
        -Wl,--build-id=none -Wl,-z,noseparate-code -Wl,-z,norelro -s \
        -o "$2" "$1.c"
}

if [ $# = 2 ]; then
    build "$1" "$2"
    exit
fi
for name in init enter keeper; do
    program="$name-$machine"
    build "$name" "$program"
    { sha256sum "$name.c" common.h build.sh "$program"; "$cc" --version | sed -n '1s/^[^ ]* /compiler: /p'; } \
        >"$program.made-of"
done
