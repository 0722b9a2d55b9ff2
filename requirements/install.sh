#!/usr/bin/env bash
# Installs what this project needs into the virtual environment whose Python is $PYTHON (.venv/bin/python if unset).
#
#   requirements/install.sh torch        the CPU build of torch, and nothing of CUDA
#   requirements/install.sh quickstart   torch and what `make quickstart` needs
#   requirements/install.sh test         what `make test` and `make lint` need on top of quickstart, a browser among it
#   requirements/install.sh cluster      Ray on top of quickstart: the CPU image (containers/Dockerfile)
#   requirements/install.sh gpu          the package with SGLang and the builds for CUDA that it asks for (containers/Dockerfile.cuda)
#   requirements/install.sh docs         what builds the documentation's site, in an environment of its own: no torch
#
# Promises: what is there already is not installed again; a machine without a GPU ends without a CUDA package; an
# installer is quiet unless it fails, and then all that it said is shown. TORCH_BACKEND names another build of torch
# than `cpu`, in the words of `uv pip install --torch-backend` (auto, cu128, ...).
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-.venv/bin/python}
TORCH_VERSION=2.13.0
TORCH_BACKEND=${TORCH_BACKEND:-cpu}
# bytecode is compiled below, on all cores; pip would do it on one
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_NO_COMPILE=1

quietly() {
    local log
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

pip_install() { quietly "$PYTHON" -m pip install -q "$@"; }

installed_torch() {
    "$PYTHON" -c 'import importlib.metadata as m; print(m.version("torch"))' 2>/dev/null || true
}

install_torch() {
    case $(installed_torch) in "$TORCH_VERSION"*) return ;; esac
    echo "installing torch $TORCH_VERSION ($TORCH_BACKEND)"
    if [ "$TORCH_BACKEND" = cpu ]; then
        # an index or a wheel directory that pip is configured with may hold it; elsewhere uv knows where it is
        "$PYTHON" -m pip install -q "torch==$TORCH_VERSION+cpu" >/dev/null 2>&1 && return
    fi
    pip_install uv
    quietly "$PYTHON" -m uv pip install --python "$PYTHON" --torch-backend "$TORCH_BACKEND" "torch==$TORCH_VERSION"
}

verify_torch() {
    [ "$TORCH_BACKEND" = cpu ] || return 0
    [ ! -e /dev/nvidia0 ] || return 0
    "$PYTHON" - <<'END'
import importlib.metadata
import sys

version = importlib.metadata.version("torch")
nvidia = sorted({d.name for d in importlib.metadata.distributions() if (d.name or "").lower().startswith("nvidia-")})
if nvidia:
    sys.exit(f"torch {version}: CUDA packages on a machine without a GPU: {', '.join(nvidia)}")

import torch

if torch.version.cuda is not None:
    sys.exit(f"torch {version} is a CUDA build (CUDA {torch.version.cuda}) on a machine without a GPU")
END
}

# Where Python may not write bytecode (PYTHONDONTWRITEBYTECODE) every process would compile what it imports. Packages carry
# files for other Pythons, which do not compile: that is no error.
compile_all() {
    "$PYTHON" - "$@" <<'END'
import compileall
import sys
import sysconfig

for directory in (sysconfig.get_path("purelib"), *sys.argv[1:]):
    compileall.compile_dir(directory, quiet=2, workers=0)
END
}

install_set() {
    echo "installing requirements/$1.txt"
    pip_install -c requirements/constraints.txt -r "requirements/$1.txt"
    pip_install --no-deps -r "requirements/$2.txt"
}

# What the tests of `miles-async web` look with, from the distribution's packages: the drivers on PyPI bring no browser.
install_browser() {
    command -v chromium >/dev/null && command -v chromedriver >/dev/null && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing chromium"
        quietly apt-get update
        DEBIAN_FRONTEND=noninteractive quietly apt-get install -y --no-install-recommends chromium chromium-driver
    else
        echo "tests/web/test_browser.py will fail: it needs chromium and chromedriver (Debian: chromium, chromium-driver)" >&2
    fi
}

case ${1:-} in
torch) install_torch ;;
quickstart)
    install_torch
    install_set quickstart nodeps
    pip_install --no-deps -e .
    compile_all bus miles_async actors
    ;;
test)
    install_set test test-nodeps
    install_browser
    compile_all tests benchmarks
    ;;
cluster)
    echo "installing requirements/cluster.txt"
    pip_install -c requirements/constraints.txt -r requirements/cluster.txt
    compile_all
    ;;
gpu)
    echo "installing miles-async[train,ray,sglang,parquet]"
    # without constraints.txt, which is of CPUs: SGLang pins other versions of some packages, and torch for CUDA
    pip_install ".[train,ray,sglang,parquet]"
    compile_all
    ;;
docs)
    echo "installing requirements/docs.txt"
    pip_install -c requirements/constraints.txt -r requirements/docs.txt
    exit
    ;;
*)
    echo "usage: requirements/install.sh torch | quickstart | test | cluster | gpu | docs" >&2
    exit 2
    ;;
esac
verify_torch
