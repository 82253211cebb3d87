#!/bin/sh
# Puts everything that a release consists of into one directory: the program with its man pages, completions and unit
# for systemd, its debug symbols, the Helm chart, the API description, the list of components (SBOM), and checksums
# with a signature. `make dist` installs what it needs.
#
#   release/dist.sh DIRECTORY
#
# MINISIGN_KEY names the file of the secret key; without it nothing is signed, and the last line says so.
set -eu
out=$(mkdir -p "$1" && cd "$1" && pwd)
if [ -n "$(ls -A "$out")" ]; then
	echo "$out is not empty" >&2
	exit 1
fi
cd "$(dirname "$0")/.."
root=$(pwd)
tools=$root/target/tools/bin
version=$(sed -n '0,/^version = /s/^version = "\(.*\)"/\1/p' Cargo.toml)
target=$(rustc -vV | sed -n 's/^host: //p')
name=kms-proxy-$version-$target
# The time in archives and in the SBOM: that of the commit.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH LC_ALL=C TZ=UTC
umask 022

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
package=$work/$name
mkdir "$package"
release/build.sh "$work/built"
cp "$work/built/kms-proxy" "$package/"
program=$package/kms-proxy

"$program" man --out "$package/man"
mkdir "$package/completions"
for shell in bash elvish fish powershell zsh; do
	"$program" completions "$shell" >"$package/completions/kms-proxy.$shell"
done
cp LICENSE README.md CHANGELOG.md SECURITY.md "$package/"
cp -R deploy/systemd "$package/systemd"

release/pack.sh "$out/$name.tar.gz" "$work" "$name"
# Debuggers look for the file by this name, beside the program.
mkdir "$work/$name.debug"
mv "$work/built/kms-proxy.debug" "$work/$name.debug/"
release/pack.sh "$out/$name.debug.tar.gz" "$work" "$name.debug"

# What is in the program, and what ran to compile it; what only tests or other platforms need is not listed.
"$tools/cargo-cyclonedx" cyclonedx --format json --describe binaries --target "$target" --spec-version 1.5 --quiet
sed "s|path+file://$root|path+file:///kms-proxy|" kms-proxy_bin.cdx.json >"$out/$name.cdx.json"
rm kms-proxy_bin.cdx.json

# `helm package` would take the times of the files: each checkout would make other bytes.
release/pack.sh "$out/kms-proxy-chart-$version.tgz" helm kms-proxy
cp openapi/kms-proxy.json "$out/kms-proxy-$version-openapi.json"

# They have the target in their name, since a release has those of several targets beside each other.
cd "$out"
sha256sum -- * >"$work/sha256sums"
mv "$work/sha256sums" "$name.sha256sums"
if [ -n "${MINISIGN_KEY:-}" ]; then
	minisign -S -s "$MINISIGN_KEY" -m "$name.sha256sums" -t "$name"
fi

# The oldest glibc that has every function which the program uses.
glibc=$(objdump -T "$program" | grep -o 'GLIBC_[0-9.]*' | sort -u -V | tail -n 1)
ls -l
echo "$name needs $glibc and: $(objdump -p "$program" | sed -n 's/^ *NEEDED *//p' | tr '\n' ' ')"
if [ -z "${MINISIGN_KEY:-}" ]; then
	echo 'NOT SIGNED: MINISIGN_KEY names no secret key.'
fi
