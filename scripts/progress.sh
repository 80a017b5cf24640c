# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2154 # common.sh sets the names that are not set here
# Long commands with progress, for scripts that fill the cache. It is sourced after
# common.sh, never run.

child=
trap '[ -z "$child" ] || kill -KILL "$child" 2>/dev/null || true' EXIT
trap 'say "${0##*/}: stopped by a failure in line $LINENO ($BASH_COMMAND)"' ERR
trap 'exit 130' INT
trap 'exit 143' TERM

# run_long TITLE SECONDS COUNTER LOG CMD...: run CMD with its output in a log and
# say how far it is: COUNTER LOG prints "n of m things", SECONDS is what it took
# on two idle cores. A terminal gets one live line, a log a line now and then.
run_long() {
	local title=$1 typical=$2 counter=$3 log=$logs/$4.log start=$SECONDS spoken=0 now rc=0
	shift 4
	say "$title: takes about $typical s (log: $log)"
	: >"$log"
	# It ends when we end, whatever ends us. The lock on the cache stays ours alone.
	setpriv --pdeathsig KILL "$@" >>"$log" 2>&1 </dev/null 9>&- &
	child=$!
	while kill -0 "$child" 2>/dev/null; do
		sleep 0.3
		now=$((SECONDS - start))
		if [ -t 2 ]; then
			printf '\r\033[K%s: %s, %d s of about %d s' \
				"$title" "$("$counter" "$log")" "$now" "$typical" >&2
		elif [ $((now - spoken)) -ge 10 ]; then
			spoken=$now
			say "$title: $("$counter" "$log"), $now s of about $typical s"
		fi
	done
	wait "$child" || rc=$?
	child=
	[ ! -t 2 ] || printf '\r\033[K' >&2
	[ "$rc" != 0 ] || say "$title: done in $((SECONDS - start)) s"
	return "$rc"
}

# After a failed run_long: the end of the log, then one line that says what to do.
give_up() {
	local title=$1 log=$logs/$2.log
	tail -n 12 "$log" >&2
	if grep -qi 'no space left' "$log"; then
		die "$title: no space left: free some, or set XENPCI_CACHE to a larger disk"
	elif grep -qE "Could not resolve|failure resolving|Could not connect|Cannot initiate|unreachable" "$log"; then
		die "$title: no network: check the connection and the proxy, or name a mirror with MIRROR="
	fi
	die "$title failed: see the lines above and $log"
}

count_nothing() { echo working; }
# The kernel's build prints a line for each file.
build_lines=210
count_build() {
	printf '%d of about %d build steps' "$(wc -l <"$1")" "$build_lines"
}

need_space() {
	local free
	free=$(df --output=avail -BG "$cache" | tail -1 | tr -dc 0-9)
	[ "$free" -ge "$1" ] ||
		die "$cache has ${free} GB free, $2 needs $1 GB: free some, or set XENPCI_CACHE"
}
