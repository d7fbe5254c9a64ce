# shellcheck shell=bash
# What the scripts beside this file share. To be sourced.
#
# Nothing here touches a PostgreSQL or a pgrx that is there already: all of ours is below one cache folder.
#   pg<major>            a private PostgreSQL; `cargo pgrx test` installs its debug builds there
#   pg<major>-run        a copy for release builds: demo, run, bench
#   pg<major>-upgrade    a copy for a plain build, where the tests of pg_upgrade start
#   pgrx/<major>         PGRX_HOME
#   clusters/<name>-<major>    clusters made by scripts/cluster
#   examples/<name>     what a program in examples/ depends on
#   cargo-tools, venv, apt, src, log
set -euo pipefail
umask 022

# Called by make, these would make PostgreSQL's own make believe that it is not the outermost.
unset MAKEFLAGS MAKELEVEL MFLAGS

repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

is_root() { [[ $EUID -eq 0 ]]; }

log() { printf '==> %s\n' "$*" >&2; }

die() {
    printf 'error: %s\n' "$1" >&2
    shift
    [[ $# -eq 0 ]] || printf '       %s\n' "$@" >&2
    exit 1
}

if [[ -n ${TENANT_RLS_CACHE:-} ]]; then
    mkdir -p "$TENANT_RLS_CACHE"
    cache=$(cd "$TENANT_RLS_CACHE" && pwd)
elif is_root; then
    cache=/var/cache/tenant_rls # not below /root: the servers run as postgres
else
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/tenant_rls
fi
mkdir -p "$cache/log"

# pgrx asks for $USER, which is not set everywhere.
export USER=${USER:-$(id -un)}

# A private cargo-pgrx comes first; cargo's own bin folder must be named, or cargo puts it before all.
export PATH="$cache/cargo-tools/bin:$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

# A server refuses to run as root, so root's servers run as Debian's user postgres.
server_user() { if is_root; then echo postgres; else id -un; fi; }

as_server() {
    if is_root; then
        (cd / && setpriv --reuid=postgres --regid=postgres --init-groups -- env HOME=/ USER=postgres "$@")
    else
        "$@"
    fi
}

# Asks again too.
apt_get() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o Acquire::Retries=5 "$@"; }

as_root() {
    if is_root; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "sudo is not installed, so this needs root: $*"
    fi
}

# The value of a line `key = "value"` or `key = "=value"` in Cargo.toml.
manifest() { sed -n "s/^$1 *=.*\"=\{0,1\}\([0-9][0-9.]*\)\".*/\1/p" "$repo/Cargo.toml" | head -n 1; }

tree() { printf '%s/pg%s%s\n' "$cache" "$1" "${2:+-$2}"; } # MAJOR [run|upgrade]

bin_below() { # TREE MAJOR: Debian's own layout, or the one of a plain ./configure --prefix
    if [[ -x $1/lib/postgresql/$2/bin/pg_config ]]; then echo "$1/lib/postgresql/$2/bin"; else echo "$1/bin"; fi
}

# PG_CONFIG, if given, takes the place of the private tree of its own major.
own_pg_config() { [[ -n ${PG_CONFIG:-} && $("$PG_CONFIG" --version) =~ ^PostgreSQL\ $1([^0-9]|$) ]]; }

pg_bin() { # MAJOR [run|upgrade]
    local bin
    if own_pg_config "$1"; then
        "$PG_CONFIG" --bindir
        return
    fi
    bin=$(bin_below "$(tree "$1" "${2:-}")" "$1")
    [[ -x $bin/pg_config ]] || die "there is no private PostgreSQL $1 yet" "make setup PG=$1"
    echo "$bin"
}

pg_config() { # MAJOR [run|upgrade]
    if own_pg_config "$1"; then echo "$PG_CONFIG"; else echo "$(pg_bin "$@")/pg_config"; fi
}

# Registries have bad minutes: each tool asks again for longer than it would by itself.
export CARGO_NET_RETRY=10 PIP_RETRIES=10 npm_config_fetch_retries=6

# Points cargo at a major. One PGRX_HOME each: pgrx builds its bindings anew whenever the file in there changes.
pgrx_env() { # MAJOR
    export PGRX_HOME=$cache/pgrx/$1
    if own_pg_config "$1"; then export PGRX_PG_CONFIG_PATH=$PG_CONFIG; else unset PGRX_PG_CONFIG_PATH; fi
}

# Runs a long command into a log file and shows that it is alive; the end of the log if it fails.
quietly() { # WHAT LOGFILE COMMAND…
    local what=$1 file=$2 start=$SECONDS pid status=0
    shift 2
    printf '==> %s (log: %s) ' "$what" "$file" >&2
    "$@" >"$file" 2>&1 </dev/null &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        sleep 1
        (((SECONDS - start) % 5)) || printf '.' >&2
    done
    wait "$pid" || status=$?
    printf ' %s s\n' $((SECONDS - start)) >&2
    if [[ $status -ne 0 ]]; then
        tail -n 40 "$file" >&2
        die "$what failed; all of it is in $file"
    fi
}
