#!/bin/sh
# Install Julia from the older Debian release that still packages it.
#
# Nothing under /etc/apt changes: the additional source, its package lists and
# its pin live in a temporary folder that goes away at the end, so later apt
# runs on this machine see the release they always saw.
set -eu

release=bullseye
sources=/etc/apt/sources.list.d/debian.sources

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

installed() {
    command -v julia >/dev/null 2>&1
}

# Julia unwinds its compiled frames with libunwind even for an exception that is
# caught, and its own compiler throws some. With a libunwind much newer than
# the one it was built for, every such exception is a segmentation fault.
survives_exceptions() {
    (julia --startup-file=no -e 'f() = try error("") catch; 0 end; exit(f())') >/dev/null 2>&1
}

if installed && survives_exceptions; then
    echo "install.sh: $(julia --version) is installed already, nothing to do"
    exit 0
fi
[ "$(id -u)" -eq 0 ] || fail "must run as root (or put a working julia on the PATH yourself)"
command -v apt-get >/dev/null 2>&1 || fail "needs apt-get; on other systems put julia on the PATH yourself"
[ -r "$sources" ] || fail "cannot read $sources, from which the $release source is derived"
[ -r /etc/os-release ] || fail "cannot read /etc/os-release, which names this machine's release"
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
[ -n "$codename" ] || fail "/etc/os-release gives no VERSION_CODENAME"
grep -q "$codename" "$sources" || fail "$sources does not mention the release $codename"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
# apt reads and downloads as an unprivileged user, who must be able to enter.
chmod 755 "$work"
mkdir -p "$work/sources.d" "$work/lists/partial" "$work/preferences.d"

cp "$sources" "$work/sources.d/machine.sources"
sed "s/$codename/$release/g" "$sources" >"$work/sources.d/$release.sources"
[ ! -d /etc/apt/preferences.d ] || cp -R /etc/apt/preferences.d/. "$work/preferences.d/"
# Priority 100 keeps every package from the machine's own release wherever that
# release has it; only what it lacks comes from the older one.
cat >"$work/preferences.d/$release" <<PIN
Package: *
Pin: release n=$release*
Pin-Priority: 100
PIN

apt() {
    DEBIAN_FRONTEND=noninteractive apt-get \
        -o Dir::Etc::sourcelist=/dev/null \
        -o Dir::Etc::sourceparts="$work/sources.d" \
        -o Dir::Etc::preferencesparts="$work/preferences.d" \
        -o Dir::State::lists="$work/lists" \
        -o Dir::Cache::pkgcache="" \
        -o Dir::Cache::srcpkgcache="" \
        -o Acquire::Retries=3 \
        "$@"
}

apt update || fail "apt-get update failed for $codename and $release"
if ! installed; then
    apt install -y --no-install-recommends julia || fail "apt-get could not install julia from $release"
    installed || fail "apt-get finished, yet julia is not on the PATH"
fi

if ! survives_exceptions; then
    # Give Julia the libunwind of its own release, in the folder that only
    # libjulia searches. The rest of the machine keeps the newer one.
    library=$(dpkg -L libjulia1 2>/dev/null | grep '/libjulia\.so\.[0-9]*$') ||
        fail "julia crashes when it handles an exception, and is not Debian's: cannot mend it"
    private=$(dirname "$library")/julia
    (cd "$work" && apt -o APT::Sandbox::User=root download "libunwind8/$release") ||
        fail "apt-get could not download libunwind8 from $release"
    dpkg -x "$work"/libunwind8_*.deb "$work/libunwind"
    unwinder=$(find "$work/libunwind" -name libunwind.so.8)
    [ -n "$unwinder" ] || fail "libunwind8 from $release holds no libunwind.so.8"
    cp -L "$unwinder" "$private/libunwind.so.8"
    survives_exceptions || fail "julia still crashes when it handles an exception"
    echo "install.sh: put libunwind.so.8 of $release into $private"
fi
julia --version
