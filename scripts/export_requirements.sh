#!/bin/sh
# Writes requirements/*.txt and tools/uv.txt: exact versions with hashes and no address, so that they install from any mirror.
# `./run lock` resolves first and then calls this with UV set; alone it needs an up-to-date uv.lock.
set -eu
cd "$(dirname "$0")/.."
uv=${UV:-uv}
version=${UV_VERSION:-$(sed -n 's/^UV_VERSION=//p' run)}

export_set() { # name, options of uv export
  name=$1
  shift
  {
    printf '# Written by `./run lock`; do not edit. Exact versions and hashes of the set "%s".\n' "$name"
    "$uv" export --quiet --frozen --format requirements.txt --no-emit-project --no-header --no-annotate "$@"
  } >"requirements/$name.txt.new"
}

# Each set holds the one before it, and all come from one lock, so installing one never moves the version of another.
export_set agent
export_set server --extra server --extra mcp # the demo speaks MCP too
export_set image --extra server --extra mcp --extra s3 # what the container image holds
export_set test --extra server --extra mcp --extra s3 --group test
export_set dev --all-extras --group dev
export_set build --only-group build # what builds the editable install
{
  printf '# Written by `./run lock`; do not edit. The installer that ./run uses.\n'
  printf 'uv==%s\n' "$version" | "$uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -
} >tools/uv.txt.new

for new in requirements/*.txt.new tools/uv.txt.new; do
  if grep -nE '://|^ *-(i|f|-index-url|-extra-index-url|-find-links)' "$new" >&2; then
    echo "error: $new names an address" >&2
    exit 70
  fi
  mv "$new" "${new%.new}"
done
