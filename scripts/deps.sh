#!/bin/sh
# Installs the Debian packages that the build, the demo and the tests need and that are missing; does nothing, and uses no network, when
# none is. Needs root only if something is missing.
set -eu
missing=""
need() { # PROGRAM PACKAGE
	command -v "$1" >/dev/null 2>&1 || [ -x "/sbin/$1" ] || [ -x "/usr/sbin/$1" ] || missing="$missing $2"
}
need fusermount3 fuse3
need git git
need sqlite3 sqlite3
need rsync rsync
need setfacl acl
need getfattr attr
need mkfs.ext4 e2fsprogs
need mkfs.xfs xfsprogs
need strace strace
need gocryptfs gocryptfs
need systemd-analyze systemd
need pgrep procps
need mount mount
need losetup mount
/usr/bin/python3 -c 'import cryptography' 2>/dev/null || missing="$missing python3-cryptography"
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
