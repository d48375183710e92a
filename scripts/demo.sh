#!/bin/sh
# A volume from creation to the second mount, on real files, in under a minute. It leaves nothing behind.
# usage: demo.sh PROGRAM, in the root of the source tree
set -eu
kmsfs=$(realpath "$1")
tree=$(pwd)
dir=$(mktemp -d)
export KMSFS_CONFIG_DIR="$dir/config"
finish() {
	cd /
	"$kmsfs" umount "$dir/plain" >/dev/null 2>&1 || true
	rm -rf "$dir"
}
trap finish EXIT INT TERM
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1. A local CMK and a volume"
"$kmsfs" key new "$dir/cmk"
"$kmsfs" init --cmk "local:$dir/cmk" "$dir/cipher"

say "2. Mount it, and copy this source tree in"
mkdir "$dir/plain"
"$kmsfs" mount --log "$dir/log" "$dir/cipher" "$dir/plain"
mkdir "$dir/plain/src"
(cd "$tree" && tar -c --exclude=./bin --exclude=./.git .) | tar -x -C "$dir/plain/src"
(cd "$tree" && find . -type f -not -path './bin/*' -not -path './.git' -not -path './.git/*' -exec sha256sum {} + | sort) > "$dir/sums"
wc -l < "$dir/sums" | sed 's/$/ files/'

say "3. git and sqlite3 work in it"
cd "$dir/plain/src"
git init -q .
git add .
git -c user.name=demo -c user.email=demo@example.org commit -qm demo
git status --short --branch
sqlite3 "$dir/plain/demo.db" "PRAGMA journal_mode=wal; CREATE TABLE t(x); INSERT INTO t VALUES('it works'); SELECT x FROM t; PRAGMA integrity_check;"
cd "$dir"

say "4. What the ciphertext shows"
ls "$dir/cipher"

say "5. One file's header: no key needed"
dd if=/dev/zero of="$dir/plain/big" bs=4096 count=25 status=none
sync "$dir/plain/big"
sealed=$(find "$dir/cipher" -maxdepth 1 -type f -size +99k -printf '%T@ %p\n' | sort | tail -n 1 | cut -d' ' -f2)
"$kmsfs" inspect "$sealed"

say "6. Overwriting one byte changes one segment of 25"
"$kmsfs" umount "$dir/plain" # what the journal holds is in place after it
cp "$sealed" "$dir/before"
"$kmsfs" mount --log "$dir/log" "$dir/cipher" "$dir/plain"
printf x | dd of="$dir/plain/big" bs=1 seek=50000 conv=notrunc status=none
"$kmsfs" umount "$dir/plain"
cmp -l "$dir/before" "$sealed" | awk '{ s[int(($1 - 1 - 2048) / 4136)] = 1 } END { for (i in s) print "segment", i, "differs" }'

say "7. Mount again, compare"
"$kmsfs" mount --log "$dir/log" "$dir/cipher" "$dir/plain"
(cd "$dir/plain/src" && sha256sum -c --quiet "$dir/sums")
echo "every file is as it was"
