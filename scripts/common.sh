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

# rows KIND: the lines of that kind in scripts/kernels, without the kind.
rows() { awk -v kind="$1" '{ sub(/#.*/, "") } $1 == kind { $1 = ""; print substr($0, 2) }' "$top/scripts/kernels"; }
# The first suite of the table is where kernels come from when nobody says more.
default_suite() { rows kernel | awk 'NR == 1 { print $2 }'; }
# All suites that kernels come from, or are watched in.
suites_of_table() { { rows kernel | awk '{ print $2 }'; rows watch | awk '{ print $1 }'; } | awk '!seen[$0]++'; }
# root_of SERIES SUITE: the root that builds for it. A series that is not in the table
# is taken as far as the suite's others.
root_of() {
	{
		rows kernel | awk -v series="$1" -v suite="$2" '$1 == series && $2 == suite { print $3 }'
		rows kernel | awk -v suite="$2" '$2 == suite { print $3 }'
		rows watch | awk -v suite="$2" '$1 == suite { print $2 }'
	} | awk 'NR == 1'
}

# The name of a cache entry carries a hash of all that made it, so that an entry
# of an older recipe is never taken for a current one. Count these up when the
# way an entry is made changes and nothing else below shows it.
root_recipe=2
kernel_recipe=2

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

# root_get NAME FIELD: suites, rustc, bindgen, cc or packages of a root in the table.
root_get() {
	rows root | awk -v name="$1" -v field="$2" '
		BEGIN { split("name suites rustc bindgen cc packages", names); for (i in names) at[names[i]] = i }
		$1 == name { print $(at[field]) }'
}
# The packages of a list in scripts/root-packages.
package_list() { awk -v list="[$1]" '{ sub(/#.*/, "") } /^\[/ { on = $1 == list; next } on' "$top/scripts/root-packages"; }
root_packages() {
	local item cc
	cc=$(root_get "$1" cc)
	for item in $(root_get "$1" packages | tr , ' '); do
		case $(package_list "$item") in
		'') echo "$item" ;;
		*) package_list "$item" ;;
		esac
	done | { cat; [ "$cc" = - ] || echo "$cc"; } | xargs -n1 | sort -u
}
root_key() {
	{
		echo "$root_recipe"
		printf '%s\n' "${root_options[@]}"
		root_get "$1" suites
		root_packages "$1"
	} | short_hash
}
root_path() { printf '%s/root-%s-%s\n' "$cache" "$1" "$(root_key "$1")"; }

# Where everything runs that is not a build for another kernel: the lab, cargo, checks.
lab_root=$(root_path "$(rows lab)")

# kernel_key ROOT: a root's file `toolchain` is written when it is built: rustc, bindgen,
# compiler.
kernel_key() {
	{
		echo "$kernel_recipe"
		cat "$(root_path "$1")/toolchain"
	} | short_hash
}

# The chosen kernel: `release`, `version` (of the packages), `suite`, `root` (name) and
# `entry` (directory). XENPCI_LOCK names another lock, for a command that is about
# another kernel than the chosen one; see for_kernel.
kernel_lock=${XENPCI_LOCK:-$cache/kernel.lock}
lock_get() { sed -n "s/^$1=//p" "$kernel_lock" 2>/dev/null || true; }
kernel_entry() { printf '%s/%s\n' "$cache" "$(lock_get entry)"; }
kernel_root() { root_path "$(lock_get root)"; }

# for_kernel SERIES SUITE COMMAND...: run it for the kernel of a line of the table, whatever
# else is chosen: the newest when the line was first used, until that leaves the archive.
for_kernel() {
	XENPCI_ROW="$1 $2" XENPCI_LOCK="$cache/locks/$1-$2" KVER='' "${@:3}"
}

# kernel_config OPTION: the text of an option in the configuration of the chosen kernel.
kernel_config() {
	sed -n "s/^CONFIG_$1=\"\(.*\)\"$/\1/p" "${2:-$(kernel_entry)/headers/usr/src/linux-headers-$(lock_get release)}/.config"
}
# What make is told to use: the kernel's own compiler.
kernel_make_arguments() {
	local cc
	cc=$(kernel_config CC_VERSION_TEXT "${1:-}")
	printf '%s\n' ARCH=x86 CROSS_COMPILE=x86_64-linux-gnu- "CC=${cc%% *}" "HOSTCC=${cc%% *}"
}

# The kernel with our drivers in its tree: see scripts/kernel.
intree_recipe=1
intree_key() {
	{
		echo "$intree_recipe"
		cat "$(kernel_root)/toolchain" "$top/scripts/kernel.config"
	} | short_hash
}

# The text of `uname -v` of the kernel that these headers are for.
uts_version() {
	sed -n 's/^#define UTS_VERSION "\(.*\)"$/\1/p' "$1/include/generated/utsversion.h"
}

# One line for all files below the given directories: their names, types, sizes
# and link targets. It costs a tenth of a second and shows a lost or cut file, or a
# directory that is not there; what programs leave behind while they run does not count.
manifest() {
	local dir=$1
	shift
	(cd "$dir" || exit; find "$@" \( -name __pycache__ -o -name 'linux-kbuild-*' \) -prune \
		-o -type d -printf 'd %p\n' -o -printf '%y %s %p %l\n' 2>/dev/null || true) |
		LC_ALL=C sort | sha256sum | cut -d' ' -f1
}

# Cargo inside the lab's root.
cargo=("$top/scripts/cargo")

# Put before a command: it runs in its own mount and process namespace. When it
# ends, or when we end, all that it started is ended and nothing stays mounted.
isolated=(setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc)
