#!/bin/sh
# Packs a directory into a compressed tar archive: the same contents make the same bytes, whatever the times, the owners
# and the permissions of the files are.
#
#   release/pack.sh FILE DIRECTORY MEMBER
#
# MEMBER is a directory in DIRECTORY. SOURCE_DATE_EPOCH is the time of all files in the archive.
set -eu
# Not a pipe: a failure of tar would not be noticed.
work=$(mktemp)
trap 'rm -f "$work"' EXIT
LC_ALL=C tar --create --file="$work" --sort=name --format=ustar --mode=u=rwX,go=rX --owner=0 --group=0 --numeric-owner \
	--mtime="@$SOURCE_DATE_EPOCH" --directory="$2" "$3"
gzip --no-name --best <"$work" >"$1"
