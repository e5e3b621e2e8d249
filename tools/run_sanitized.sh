#!/usr/bin/env bash
# Runs an executable built with a sanitizer. ThreadSanitizer of gcc 12 gives up with "unexpected memory mapping" on
# kernels that randomise more address bits than it knows; then, and only then, it runs without randomisation.
set -uo pipefail
export TSAN_OPTIONS="${TSAN_OPTIONS:-halt_on_error=1 second_deadlock_stack=1}"
export UBSAN_OPTIONS="${UBSAN_OPTIONS:-print_stacktrace=1}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$@" 2>&1 | tee "$log"
status=$?
if [ "$status" -ne 0 ] && grep -q "unexpected memory mapping" "$log"; then
  echo "+ setarch -R $*"
  setarch -R "$@"
  exit $?
fi
exit "$status"
