#!/bin/sh
# Makes what deploy/compose.yaml needs before its first start: random passwords, and the statements that give them to two roles of
# PostgreSQL. Files belong to the users of the containers that read them, so run it as root. It never replaces a file.
#   sh deploy/secrets.sh [DIRECTORY]
set -eu
umask 077
directory=${1:-$(dirname "$0")/secrets}
mkdir -p "$directory"
chmod 711 "$directory"

secret() { # name, uid of its reader
  [ ! -e "$directory/$1" ] || { echo "error: $directory/$1 exists; nothing was changed" >&2; exit 77; }
  od -An -v -N24 -tx1 /dev/urandom | tr -d ' \n' >"$directory/$1"
  chown "$2" "$directory/$1" 2>/dev/null || echo "warning: $1 must belong to uid $2; run this as root" >&2
}

secret postgres-password 999
secret owner-password 65532
secret server-password 65532
secret grafana-password 472
cat >"$directory/roles.sql" <<SQL
CREATE ROLE compliance_owner LOGIN PASSWORD '$(cat "$directory/owner-password")';
CREATE ROLE compliance_server LOGIN PASSWORD '$(cat "$directory/server-password")';
CREATE DATABASE compliance OWNER compliance_owner;
SQL
chown 999 "$directory/roles.sql" 2>/dev/null || echo "warning: roles.sql must belong to uid 999; run this as root" >&2
