# Sourced by every script of the lab: locations of its parts and functions to reach them.
# shellcheck shell=bash disable=SC2034  # the scripts that source this read the names below
set -euo pipefail
export LC_ALL=C

LAB_SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE_DIR=${FLATLINE_CACHE:-$HOME/.cache/flatline}
LAB_DIR=${FLATLINE_LAB_DIR:-$CACHE_DIR/lab}
IMAGE_DIR=$CACHE_DIR/guest-image
HYPERVISORS="a b"
POOLS="ssd hdd"
BRIDGE=lab0
GATEWAY=10.73.0.1
# One network namespace for each lab directory, so that two labs on one machine do not interfere.
NETWORK=flatline-$(printf %s "$LAB_DIR" | cksum | cut -d' ' -f1)

# Factor by which a script waits longer than on a dedicated machine; a whole number.
PATIENCE=${FLATLINE_LAB_PATIENCE:-1}

die() { echo "${0##*/}: $*" >&2; exit 1; }
need_root() { [ "$(id -u)" = 0 ] || die "libvirtd and tap devices need root: run it with sudo -E"; }
uri() { echo "qemu+unix:///system?socket=$LAB_DIR/$1/run/libvirt-sock"; }
virsh_on() { local hypervisor=$1; shift; virsh -q -c "$(uri "$hypervisor")" "$@"; }
in_network() { nsenter "--net=/run/netns/$NETWORK" -- "$@"; }
took() { printf '%-28s %5.1f s\n' "$1" "$(echo "$EPOCHREALTIME - $2" | bc)"; }

# A UNIX socket's path has at most 107 bytes; libvirt appends the longest suffix to LAB_DIR.
[ ${#LAB_DIR} -le 64 ] || die "FLATLINE_LAB_DIR is ${#LAB_DIR} bytes long, sockets leave room for 64"
