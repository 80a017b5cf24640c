# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034,SC2154 # common.sh sets the names that are not set here
# What Debian's archive has: the mirror, and the kernels of a suite. It is sourced after
# common.sh and progress.sh, never run.
#
# apt runs inside the lab's root. It keeps a state of its own for each suite in
# $XENPCI_CACHE/apt/SUITE: a suite's lists are fetched only when they are needed, and a
# version is always of the suite that was asked for.

# The host's archive of that label, as its own apt knows it.
host_archive() {
	# shellcheck disable=SC2016 # the $( ) is apt's
	apt-get indextargets --format '$(REPO_URI)' 'Identifier: Packages' \
		'Component: main' "Label: $1" 2>/dev/null | grep '^https\?:' | sort -u | head -1 || true
}

# Where to fetch packages: MIRROR=, else what the host uses. No mirror's name is
# kept in this project.
find_mirror() {
	mirror=${MIRROR:-$(host_archive Debian)}
	security=
	if [ -z "$mirror" ]; then # perhaps the host never ran apt-get update
		host_apt update
		mirror=$(host_archive Debian)
	fi
	[ -n "$mirror" ] || die "the host's apt knows no Debian mirror: name one with MIRROR="
	[ -n "${MIRROR:-}" ] || security=$(host_archive Debian-Security)
}

# How the host's apt reaches its mirror: proxies, retries, date checks.
host_apt_settings() {
	apt-config dump | grep -E '^Acquire::(http|https|Retries|ForceIPv|Check-)' |
		grep -vE '::CAInfo|Proxy-Auto-Detect' || true
	echo 'Acquire::https::CAInfo "/etc/ssl/certs/ca-certificates.crt";'
}

host_apt() {
	run_long "host: apt-get $*" 10 count_nothing host-apt \
		env DEBIAN_FRONTEND=noninteractive apt-get -q -y "$@" || give_up "apt-get $1" host-apt
}

# Put before apt's programs: they have the lists of that suite.
apt_of() { in_apt=("$top/scripts/inroot" env "APT_CONFIG=/cache/apt/$1/apt.conf"); }

# update_lists SUITE: fetch its lists of packages. An error leaves its reason in the log.
update_lists() {
	local suite=$1 state=$cache/apt/$1 mirror
	find_mirror
	mkdir -p "$state/state/lists/partial" "$state/cache/archives/partial"
	echo "deb $mirror $suite main" >"$state/sources.list"
	{
		host_apt_settings
		cat <<-END
			Dir::State "/cache/apt/$suite/state";
			Dir::State::status "/var/lib/dpkg/status";
			Dir::Cache "/cache/apt/$suite/cache";
			Dir::Etc::SourceList "/cache/apt/$suite/sources.list";
			Dir::Etc::SourceParts "/dev/null";
			APT::Sandbox::User "root";
			Acquire::Languages "none";
		END
	} >"$state/apt.conf"
	# apt-get update calls a mirror that it could not reach a warning.
	apt_of "$suite"
	run_long "kernels: list of $suite" 5 count_nothing kernel-list \
		"${in_apt[@]}" apt-get -q update &&
		! grep -qE '^(W|E): (Failed to fetch|Some index)' "$logs/kernel-list.log"
}

# list_kernels SUITE [image]: each kernel of the flavour amd64 in the lists of that suite as
# "suite series release version whole|parts packages", newest first: whole when image,
# modules, headers, build tools and source all exist at that one version, else what is
# missing, with commas. With `image` only the image and its modules are looked for.
list_kernels() {
	apt_of "$1"
	# shellcheck disable=SC2016 # the $( ) is apt's
	"${in_apt[@]}" sh -c 'apt-get indextargets --format "\$(FILENAME)" "Identifier: Packages" |
		xargs /usr/lib/apt/apt-helper cat-file' | awk -v suite="$1" -v image="${2:-}" '
		/^Package: / { name = $2 }
		/^Version: / { version = $2 }
		/^(Pre-)?Depends: / { depends = depends ", " $0 }
		/^$/ { stanza() }
		END {
			stanza()
			for (i = 1; i <= images; i++) report(image_release[i], image_version[i])
		}
		function stanza() {
			have[name, version] = 1
			if (name ~ /^linux-/) needs[name, version] = depends
			if (name ~ /^linux-image-[0-9][0-9.]*([+][^-]*|-[0-9]+)?-amd64$/) {
				image_release[++images] = substr(name, length("linux-image-") + 1)
				image_version[images] = version
			}
			name = version = depends = ""
		}
		function want(name, version) {
			if (listed[name]++) return
			packages = packages "," name
			if (!((name, version) in have)) missing = missing "," name
			follow(needs[name, version], version)
		}
		# The kernel packages name each other with "(= version)".
		function follow(text, version,    parts, n, i, word) {
			n = split(text, parts, /[,|]/)
			for (i = 1; i <= n; i++) {
				split(parts[i], word, " ")
				if (word[1] == "linux-kbuild-" base ||
				    (word[1] ~ /^linux-/ && index(parts[i], "(= " version ")")))
					want(word[1], version)
			}
		}
		function report(release, version,    number, series) {
			split("", listed)
			packages = missing = ""
			base = release
			sub(/-amd64$/, "", base)
			split(release, number, /[.+-]/)
			series = number[1] "." number[2]
			want("linux-image-" release, version)
			if (!image) {
				want("linux-headers-" release, version)
				want("linux-kbuild-" base, version)
				want("linux-source-" series, version)
			}
			print suite, series, release, version, missing == "" ? "whole" : substr(missing, 2),
				substr(packages, 2)
		}' | sort -u | sort -k4,4Vr
}

# unknown_kernels SUITES: kernels there that are of a newer series than the table has for that
# suite, as "series release suite"; it needs the lists of those suites. A watched suite has no
# series of its own: it is compared with the newest of the table.
unknown_kernels() {
	local suite newest
	for suite in $1; do
		newest=$(rows kernel | awk -v suite="$suite" '$2 == suite { print $1 }' | sort -V | tail -n 1)
		[ -n "$newest" ] || newest=$(rows kernel | awk '{ print $1 }' | sort -V | tail -n 1)
		list_kernels "$suite" | awk -v newest="$newest" '
			BEGIN { split(newest, known, ".") }
			{ split($2, number, ".") }
			number[1] > known[1] + 0 || number[1] == known[1] && number[2] > known[2] + 0 { print $2, $3, $1 }'
	done | sort -u
}
