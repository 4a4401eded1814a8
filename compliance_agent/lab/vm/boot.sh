#!/bin/sh
# The first process, where a NixOS host has its second stage: which generation is booted is decided here, as its boot menu does. The
# selected one, or the one that the kernel parameter `generation=N` names. The network is up before any service asks for it.
system=/nix/var/nix/profiles/system
for word in $(cat /proc/cmdline); do
  case $word in generation=*) system=$system-${word#generation=}-link ;; esac
done
system=$(readlink -f "$system")
ln -sfn "$system" /run/booted-system
"$system/activate"
ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2
exec /lib/systemd/systemd
