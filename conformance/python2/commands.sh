#!/bin/sh
# The commands that come with PyPI `keyprotect` 2.3.1: rs-crypto and rs-keyprotect. They know no
# other address than the cloud's, so this runs where those names are the key service's.
set -u
say() { # NAME works|fails NOTE
	printf '{"name": "%s", "outcome": "%s", "note": "%s"}\n' "$1" "$2" "$3" >>"$CONFORMANCE_REPORT"
}
last() { tr -d '\\"\t' <said | tail -n 1 | cut -c 1-250; }
try() { # NAME COMMAND...
	name=$1
	shift
	if "$@" >out 2>said; then say "$name" works ""; else say "$name" fails "$(last)"; return 1; fi
}
field() { sed -n "s/^ *\"$1\": \"\([^\"]*\)\".*/\1/p" out | head -n 1; }

export KP_INSTANCE_ID="$CONFORMANCE_INSTANCE_ID"
try "rs-keyprotect list-instances" rs-keyprotect list-instances
try "rs-keyprotect create" rs-keyprotect create conformance
id=$(field id)
crn=$(field crn)
try "rs-keyprotect list" rs-keyprotect list
try "rs-keyprotect get" rs-keyprotect get "$id"
try "rs-keyprotect wrap" rs-keyprotect wrap "$id" --data text
wrapped=$(field ciphertext)
try "rs-keyprotect unwrap" rs-keyprotect unwrap "$id" "$wrapped"
if rs-keyprotect unwrap "$id" "$wrapped" --override-handle 6f1c7d0e-5c0f-4c60-9e52-0d4a6a9b1a11 >out 2>said; then
	say "rs-keyprotect unwrap (handle replaced)" fails "answered; a refusal was right"
else
	say "rs-keyprotect unwrap (handle replaced)" works "refused, as it should be: the ciphertext was changed"
fi
try "rs-keyprotect rotate" rs-keyprotect rotate "$id"
printf 'a message' >message
try "rs-crypto encrypt" rs-crypto encrypt --key-crns "$crn" message && cp out sealed
try "rs-crypto decrypt" rs-crypto decrypt sealed
if cmp -s out message; then
	say "rs-crypto decrypt (same message)" works ""
else
	say "rs-crypto decrypt (same message)" fails "another message came back"
fi
try "rs-keyprotect delete" rs-keyprotect delete "$id"
