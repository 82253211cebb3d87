#!/bin/sh
# Builds the program twice, from copies of this checkout: in other directories, with another Cargo home, as another
# user on another host, 400 days later, in another time zone and locale, with other permissions for new files.
# Fails unless both programs, and both files of debug symbols, are the same bytes.
#
#   release/reproduce.sh DIRECTORY
#
# DIRECTORY must not exist. It needs 10 GB there.
set -eu
directory=$1
mkdir "$directory"
directory=$(cd "$directory" && pwd)
cd "$(dirname "$0")/.."
tools=$(pwd)/target/tools/bin
cargo_home=${CARGO_HOME:-$HOME/.cargo}
rustup_home=${RUSTUP_HOME:-$HOME/.rustup}

first=$directory/first
second=$directory/a/second/and/longer/path
for copy in "$first" "$second"; do
	mkdir -p "$copy"
	git ls-files -z | tar --create --null --files-from=- | tar --extract --directory="$copy"
done

# The clock of the second build is wrong for every certificate, so crates are fetched before.
cargo fetch --locked --target "$(rustc -vV | sed -n "s/^host: //p")"
mkdir -p "$directory/other-home/cargo"
other_registry=$directory/other-home/cargo/registry
# Links, where both are on one file system.
if ! cp -al "$cargo_home/registry" "$other_registry" 2>/dev/null; then
	rm -rf "$other_registry"
	cp -a "$cargo_home/registry" "$other_registry"
fi

export PROTOC="$tools/protox" PATH="$tools:$PATH" CARGO_NET_OFFLINE=true RUSTUP_HOME="$rustup_home"
(
	umask 022
	CARGO_HOME=$cargo_home "$first/release/build.sh" "$directory/out-first"
) >"$directory/first.log" 2>&1 &
one=$!
# faketime and the allocator of rustc wait for each other, so rustc, procedural macros and the linker see the true
# time; Cargo, the build scripts and the C compiler do not.
cat >"$directory/rustc" <<'END'
#!/bin/sh
unset LD_PRELOAD
exec rustc "$@"
END
chmod 755 "$directory/rustc"
(
	umask 077
	export RUSTC="$directory/rustc"
	export HOME="$directory/other-home" CARGO_HOME="$directory/other-home/cargo" USER=someone LOGNAME=someone \
		HOSTNAME=elsewhere LANG=tr_TR.UTF-8 LC_ALL=tr_TR.UTF-8 TZ=Pacific/Kiritimati
	exec unshare --user --map-user=65534 --uts faketime -f +400d "$second/release/build.sh" "$directory/out-second"
) >"$directory/second.log" 2>&1 &
two=$!
failed=
wait "$one" || failed="$directory/first.log"
wait "$two" || failed="$failed $directory/second.log"
if [ -n "$failed" ]; then
	tail -n 20 $failed >&2
	exit 1
fi

cd "$directory"
sha256sum out-first/kms-proxy out-second/kms-proxy out-first/kms-proxy.debug out-second/kms-proxy.debug
for file in kms-proxy kms-proxy.debug; do
	if ! cmp "out-first/$file" "out-second/$file"; then
		echo "$file is not reproducible: compare the two with diffoscope" >&2
		exit 1
	fi
done
echo "reproducible: $(rustc --version), $(ld --version | head -n 1), $(uname -m)"
