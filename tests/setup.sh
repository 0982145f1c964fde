# shellcheck shell=bash disable=SC2034
# What tests/demo and tests/check need: Debian packages, a Python environment, the way to Rust. Sourced by both; does
# nothing that is done already.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT" || exit 1

TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
[[ $TARGET == /* ]] || TARGET=$ROOT/$TARGET
export CARGO_TARGET_DIR=$TARGET
VENV=$TARGET/lab/venv

# tc, ip and nginx live in sbin; rustup puts cargo where a login shell looks.
export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:$HOME/.cargo/bin

PACKAGES=(
    ca-certificates curl ethtool gcc iproute2 libc6-dev libnginx-mod-http-modsecurity make modsecurity-crs nginx
    tcpdump util-linux wrk
)
# systemd is the one of the hosts of the lab.
CLOUD_PACKAGES=(python3 python3-venv systemd)
# Independent readers that tests compare with, and a linter.
CHECK_PACKAGES=(openssl shellcheck tshark)

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

need_root() {
    [[ $EUID -eq 0 ]] || die "run this as root: it makes network namespaces, and installs the Debian packages it lacks"
}

need_cargo() {
    command -v cargo >/dev/null || die "cargo is not installed; get Rust from https://rustup.rs"
}

# Installs those of the named packages that are not there.
install_packages() {
    local package missing=()
    for package in "$@"; do
        [[ $(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "no apt-get here; install what these Debian packages hold: ${missing[*]}"
    echo "installing ${missing[*]}"
    # Debian starts what it installs; an nginx of the machine's own on port 80 is not wanted here.
    local policy=/usr/sbin/policy-rc.d ours=
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        ours=yes
    fi
    local failed=
    {
        apt-get -qq update &&
            DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "${missing[@]}"
    } </dev/null || failed=yes
    [[ -z $ours ]] || rm -f "$policy"
    [[ -z $failed ]] || die "apt-get could not install ${missing[*]}"
}

# Makes the Python environment of tests/requirements.txt, unless it is there already.
make_venv() {
    local wanted
    wanted=$(sha256sum <tests/requirements.txt)
    [[ -x $VENV/bin/python && $(cat "$VENV/.requirements" 2>/dev/null) == "$wanted" ]] && return 0
    echo "making the Python environment in $VENV: 1 GB, two minutes"
    rm -rf "$VENV"
    python3 -m venv "$VENV" || die "python3 -m venv failed; install python3-venv"
    "$VENV/bin/pip" install --disable-pip-version-check -r tests/requirements.txt \
        > >(grep --line-buffered -E '^(Collecting|Installing)') ||
        die "pip could not install tests/requirements.txt"
    printf '%s\n' "$wanted" >"$VENV/.requirements"
}

# checkov pins older versions of libraries that the other environment needs newer.
make_checkov() {
    local wanted venv=$TARGET/lab/checkov
    wanted=$(sha256sum <tests/requirements-checkov.txt)
    [[ -x $venv/bin/checkov && $(cat "$venv/.requirements" 2>/dev/null) == "$wanted" ]] && return 0
    echo "making the Python environment in $venv: 300 MB, a minute"
    rm -rf "$venv"
    python3 -m venv "$venv" || die "python3 -m venv failed; install python3-venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/requirements-checkov.txt ||
        die "pip could not install tests/requirements-checkov.txt"
    printf '%s\n' "$wanted" >"$venv/.requirements"
}
