#!/bin/sh
# The tests of the index, of the loops of a placement and of hashing over a native module built with the address and undefined-behaviour sanitizers,
# in a copy of the router's package. Usage: tests/sanitize.sh PYTHON [pytest arguments]
set -eu
python=$1
shift
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
cp -r router/warmfleet_router "$copy"
rm -f "$copy"/warmfleet_router/_native*.so
include=$("$python" -c "import sysconfig; print(sysconfig.get_path('include'))")
${CC:-gcc} -std=c11 -O1 -g -Wall -Wextra -Werror -Wno-missing-field-initializers -Wno-cast-function-type \
  -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -shared -fPIC \
  -I"$include" "$copy/warmfleet_router/_native.c" -o "$copy/warmfleet_router/_native.abi3.so"
# Python itself is not built with the sanitizers: their runtime is preloaded, and what the interpreter
# keeps for good would count as leaks (tests/unit/router/test_index_rules.py looks for those itself).
LD_PRELOAD=$("${CC:-gcc}" -print-file-name=libasan.so) PYTHONMALLOC=malloc CI=true \
  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 PYTHONPATH="$copy" \
  "$python" -m pytest tests/unit/router/test_index.py tests/unit/router/test_index_rules.py \
  tests/unit/router/test_offers.py tests/unit/router/test_hasher.py --timeout 300 "$@"
