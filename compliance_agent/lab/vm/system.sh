#!/bin/sh
# Builds a system as a real store path and selects it as the newest generation: lab-system NUMBER sound|broken.
#
# It holds what NixOS's have and the product uses: `activate`, `switch-to-configuration`, a kernel of its own in its closure, its version.
# A broken one takes the machine down when it is activated, while it is switched to and at every start.
set -e
number=$1 kind=$2
profile=/nix/var/nix/profiles/system
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "kernel $number" >"$work/kernel-$number"
kernel=$(nix-store --add "$work/kernel-$number")
tree=$work/nixos-system-lab-$number
mkdir -p "$tree/bin" "$tree/sw/bin"
ln -s "$kernel" "$tree/kernel"
printf '{"nixosVersion":"25.11.%s.abc1234","nixpkgsRevision":"%040x"}\n' "$(date -u +%Y%m%d)" "$number" >"$tree/version.json"
printf '#!/bin/sh\nexec cat /run/current-system/version.json\n' >"$tree/sw/bin/nixos-version"
cat >"$tree/activate" <<'ACTIVATE'
#!/bin/sh
self=$(dirname "$(readlink -f "$0")")
[ ! -e "$self/broken" ] || { echo c >/proc/sysrq-trigger; sleep 60; }
ln -sfn "$self" /run/current-system
cp "$self/version.json" /etc/lab-version
ACTIVATE
cat >"$tree/bin/switch-to-configuration" <<'SWITCH'
#!/bin/sh
sync -f /nix/store # as NixOS's does, before anything is activated
exec "$(dirname "$(dirname "$(readlink -f "$0")")")/activate"
SWITCH
[ "$kind" = sound ] || touch "$tree/broken"
chmod 755 "$tree/activate" "$tree/bin/switch-to-configuration" "$tree/sw/bin/nixos-version"
# One user, no network, nothing but what is here.
NIX_CONFIG=$(printf 'substitute = false\nsandbox = false\nbuild-users-group =\n')
export NIX_CONFIG
path=$(nix-build --no-out-link -E "derivation {
  name = \"$(basename "$tree")\"; system = builtins.currentSystem; builder = \"/bin/sh\";
  args = [ \"-c\" \"/bin/cp -r $tree \$out\" ]; kernel = builtins.storePath \"$kernel\"; }")
nix-env -p "$profile" --set "$path"
