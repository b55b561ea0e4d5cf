#!/usr/bin/env bash
# Makes the virtual environment from requirements.lock: `bash infra/setup.sh .venv`. Needs Python 3.11 or 3.12 with pip.
set -euo pipefail
venv=$1

supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; }

python=""
for candidate in "${PYTHON:-}" python3.11 python3.12 python3 python; do
    if [ -n "$candidate" ] && supported "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ]; then
    echo "setup: found no Python 3.11 or 3.12; install one, or name it: make setup PYTHON=/path/to/python3.11" >&2
    exit 2
fi

# uv resolves nothing here: it only installs what the lock pins, several times faster than pip.
tools=$venv/.tools
if command -v uv >/dev/null; then
    uv=uv
else
    if [ ! -x "$tools/bin/uv" ]; then
        echo "setup: no uv on this machine, bringing one into $tools"
        installer=$python
        if ! "$python" -m pip --version >/dev/null 2>&1; then
            # The Python of another virtual environment may have none.
            if ! "$python" -m venv "$tools/pip" >/dev/null 2>&1; then
                echo "setup: found neither uv nor pip for $python; install one of them, such as Debian's python3-venv" >&2
                exit 2
            fi
            installer=$tools/pip/bin/python
        fi
        "$installer" -m pip install --quiet --disable-pip-version-check --target "$tools" uv
    fi
    uv=$tools/bin/uv
fi

echo "setup: $("$python" --version) -> $venv"
[ -x "$venv/bin/python" ] || "$python" -m venv --without-pip "$venv"
"$uv" pip install --quiet --python "$venv/bin/python" --requirement requirements.lock
"$uv" pip install --quiet --python "$venv/bin/python" --no-deps --no-build-isolation --editable .
echo "setup: done"
