#!/bin/sh
# Compiler launcher (DCOMM_PTXAS_LOG=ON): runs the nvcc command line it is given and keeps what ptxas says beside
# the object, so that the resource check also sees objects that an incremental build did not compile again.
object=
previous=
for argument in "$@"; do
  [ "$previous" = "-o" ] && object=$argument
  previous=$argument
done
[ -n "$object" ] || exec "$@"
"$@" >"$object.ptxas.log" 2>&1
status=$?
if [ "$status" -ne 0 ]; then
  cat "$object.ptxas.log" >&2
  rm -f "$object.ptxas.log"
fi
exit "$status"
