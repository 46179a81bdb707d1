#!/bin/sh
# Make .venv with a suitable interpreter and install this package into it, with the versions of constraints.txt.
# Does nothing where that has been done already and neither pyproject.toml nor constraints.txt differs.
#
# usage: sh scripts/_venv.sh [EXTRA]
#     EXTRA   an extra of pyproject.toml, such as dev
#     PYTHON  (environment) the interpreter to use instead of the first suitable one found
set -eu
cd "$(dirname "$0")/.."
# Leftovers of an environment that happens to be active must not reach into ours.
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV CONDA_PREFIX

extra=${1:-}
venv_python=.venv/bin/python

say() { echo "bayes-sched: $*" >&2; }

# On the PATH is not enough: a pyenv shim of a version that is not selected is found there, and fails.
runs() { "$@" >/dev/null 2>&1; }

use_uv=
if runs uv --version; then use_uv=yes; fi

suitable() {
    runs "$1" -c 'import sys; sys.exit(sys.implementation.name != "cpython" or not (3, 12) <= sys.version_info < (3, 15))'
}

# Debian and Ubuntu package venv and ensurepip apart from the interpreter; uv needs neither.
can_make_venv() { [ -n "$use_uv" ] || runs "$1" -c 'import ensurepip, venv'; }

find_python() {
    pyenv_versions=${PYENV_ROOT:-${HOME:-}/.pyenv}/versions
    for candidate in python3.13 python3.12 python3.14 python3 python "$pyenv_versions"/3.13.*/bin/python \
        "$pyenv_versions"/3.12.*/bin/python "$pyenv_versions"/3.14.*/bin/python; do
        if suitable "$candidate" && can_make_venv "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

make_venv() {
    python=${PYTHON:-}
    if [ -z "$python" ]; then
        python=$(find_python)
    elif ! suitable "$python" || ! can_make_venv "$python"; then
        say "PYTHON=$python is not a CPython 3.12, 3.13 or 3.14 that has the venv module."
        exit 1
    fi
    if [ -z "$python" ] && [ -z "$use_uv" ]; then
        say "found no suitable Python: CPython 3.12, 3.13 or 3.14 with the venv module is needed." \
            "Install one (Debian, Ubuntu: python3-venv too) or uv, or name one: make demo PYTHON=/path/to/python3.13"
        exit 1
    fi
    rm -rf .venv
    if [ -n "$use_uv" ]; then
        say "making .venv with uv and ${python:-a Python 3.13 that uv provides}"
        uv venv --quiet --no-project --python "${python:-3.13}" .venv
    else
        say "making .venv with $python"
        "$python" -m venv .venv
    fi
    pwd >.venv/.root
}

install() {
    target=.${extra:+[$extra]}
    if [ -n "$use_uv" ]; then
        say "installing with uv"
        uv pip install --quiet --python "$venv_python" \
            -c constraints.txt --build-constraints constraints.txt -e "$target"
    else
        say "installing with pip: a minute or two where nothing is cached"
        runs "$venv_python" -m pip --version || "$venv_python" -m ensurepip >/dev/null
        # The variables reach the isolated environment of the build, which -c does not; before pip 25.3 the
        # first of them, since then the second.
        PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1 \
            "$venv_python" -m pip install --quiet -c constraints.txt -e "$target"
    fi
}

# A folder that was moved or copied carries a .venv whose absolute paths lead to its former place.
if ! suitable "$venv_python" || { [ -e .venv/.root ] && [ "$(cat .venv/.root)" != "$(pwd)" ]; }; then
    make_venv
fi
stamp=$(cat pyproject.toml constraints.txt | cksum)
stamp_file=.venv/.installed${extra:+-$extra}
if [ "$(cat "$stamp_file" 2>/dev/null)" != "$stamp" ]; then
    install
    # An extra brings all that the bare package needs.
    echo "$stamp" | tee "$stamp_file" >.venv/.installed
fi
