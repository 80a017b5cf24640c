# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034 # the scripts that source this file use its variables
# What the scripts beside this file share. It is sourced, never run.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cache=${XENPCI_CACHE:-${HOME:?}/.cache/xen-pci-rust}
logs=$cache/logs

say() { printf '%s\n' "$*" >&2; }
die() {
	say "${0##*/}: $*"
	exit 1
}

need_root() {
	[ "$(id -u)" = 0 ] || die "must run as root: use sudo or a root shell"
}

# The name of a cache entry carries a hash of all that made it, so that an entry
# of an older recipe is never taken for a current one. Count these up when the
# way an entry is made changes and nothing else below shows it.
root_recipe=1
kernel_recipe=1

root_options=(
	--variant=apt --mode=root --components=main
	'--aptopt=APT::Install-Recommends "false"'
	'--aptopt=Acquire::Languages "none"'
	'--dpkgopt=path-exclude=/usr/share/man/*'
	'--dpkgopt=path-exclude=/usr/share/doc/*'
	'--dpkgopt=path-exclude=/usr/share/locale/*'
	'--dpkgopt=path-include=/usr/share/locale/locale.alias'
)

short_hash() { sha256sum | cut -c1-12; }
root_packages() { sed 's/#.*//' "$top/scripts/root-packages" | xargs -n1 | sort -u; }
root_key() {
	{
		echo "$root_recipe"
		printf '%s\n' "${root_options[@]}"
		root_packages
	} | short_hash
}
# root/toolchain is written when the root is built: rustc, bindgen, gcc.
kernel_key() {
	{
		echo "$kernel_recipe"
		cat "$root/toolchain"
	} | short_hash
}

# The kernel with our drivers in its tree: see scripts/kernel.
intree_recipe=1
intree_key() {
	{
		echo "$intree_recipe"
		cat "$root/toolchain" "$top/scripts/kernel.config"
	} | short_hash
}

root=$cache/root-$(root_key)
kernel_lock=$cache/kernel.lock

# The chosen kernel: `release`, `version` (of the packages), `entry` (directory).
lock_get() { sed -n "s/^$1=//p" "$kernel_lock" 2>/dev/null || true; }
kernel_entry() { printf '%s/%s\n' "$cache" "$(lock_get entry)"; }

# The text of `uname -v` of the kernel that these headers are for.
uts_version() {
	sed -n 's/^#define UTS_VERSION "\(.*\)"$/\1/p' "$1/include/generated/utsversion.h"
}

# One line for all files below the given directories: their names, types, sizes
# and link targets. It costs a tenth of a second and shows a lost or cut file;
# what programs leave behind while they run does not count.
manifest() {
	local dir=$1
	shift
	(cd "$dir" && find "$@" \( -name __pycache__ -o -name 'linux-kbuild-*' \) -prune \
		-o -type d -printf 'd %p\n' -o -printf '%y %s %p %l\n' 2>/dev/null) |
		LC_ALL=C sort | sha256sum | cut -d' ' -f1
}

# Cargo inside the root. It reads .cargo/config.toml from the directory it is in.
cargo=("$top/scripts/inroot" env --chdir=/src/tests CARGO_TARGET_DIR=/src/build/target cargo)

# Put before a command: it runs in its own mount and process namespace. When it
# ends, or when we end, all that it started is ended and nothing stays mounted.
isolated=(setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc)
