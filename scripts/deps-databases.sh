#!/bin/sh
# Installs the database servers that integration/powercut runs and that are missing; does nothing, and uses no network, when none is. No
# server is started and no database is made: the tests make their own. Needs root only if something is missing.
set -eu
missing=""
ls /usr/share/postgresql/*/extension/amcheck.control >/dev/null 2>&1 || missing="$missing postgresql"
# The core packages are the programs alone, without a service.
command -v mariadbd >/dev/null 2>&1 || [ -x /usr/sbin/mariadbd ] || missing="$missing mariadb-server-core"
command -v mariadb >/dev/null 2>&1 || missing="$missing mariadb-client-core"
[ -n "$missing" ] || exit 0
if [ "$(id -u)" -ne 0 ]; then
	echo "please install:$missing" >&2
	exit 1
fi
policy=/usr/sbin/policy-rc.d
cluster=/etc/postgresql-common/createcluster.d/kmsfs.conf
clean() {
	rm -f "$cluster"
	[ -z "${ours:-}" ] || rm -f "$policy"
}
trap clean EXIT
trap 'exit 1' HUP INT TERM
if [ ! -e "$policy" ]; then
	ours=1
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 755 "$policy"
fi
mkdir -p "${cluster%/*}"
echo "create_main_cluster = false" >"$cluster"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq >/dev/null
# shellcheck disable=SC2086 # a list of words
apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 || {
	echo "cannot install:$missing" >&2
	exit 1
}
