#!/bin/sh
# Compiles init.c for this machine's architecture, or with CC=aarch64-linux-gnu-gcc for that one.
# usage: build.sh [OUTPUT]
# Without OUTPUT the program that is shipped is replaced, and what it was made of written beside it.
set -eu
cd "$(dirname "$0")"
cc="${CC:-cc}"
machine="$("$cc" -dumpmachine | cut -d- -f1)"
program="init-$machine"
"$cc" -std=gnu11 -Os -Wall -Wextra -Werror -ffreestanding -nostdlib -static -no-pie -fno-pic \
    -fno-stack-protector -fno-asynchronous-unwind-tables -fno-unwind-tables -fno-builtin \
    -Wl,--build-id=none -Wl,-z,noseparate-code -Wl,-z,norelro -s \
    -o "${1:-$program}" init.c
if [ $# = 0 ]; then
    { sha256sum init.c build.sh "$program"; "$cc" --version | sed -n '1s/^[^ ]* /compiler: /p'; } \
        >"$program.made-of"
fi
