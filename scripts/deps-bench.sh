#!/bin/sh
# Installs the Debian packages of the filesystems that the benchmarks compare with and that are missing; does nothing, and uses no network,
# when none is. Needs root only if something is missing.
set -eu
missing=""
for peer in gocryptfs securefs; do
	command -v "$peer" >/dev/null 2>&1 || missing="$missing $peer"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
	echo "please install:$missing" >&2
	exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >/dev/null
# shellcheck disable=SC2086 # a list of words
apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 || {
	echo "cannot install:$missing" >&2
	exit 1
}
