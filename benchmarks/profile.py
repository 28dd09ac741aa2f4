"""Where the time of a call goes: see call_profile.py, which this starts.

python benchmarks/profile.py --help
"""

import sys
import sysconfig
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

if __name__ == "__main__":
    from call_profile import main

    main()
else:
    # torch imports cProfile, and that the standard library's module of this name, for which a script's folder is
    # searched first.
    spec = spec_from_file_location(__name__, Path(sysconfig.get_path("stdlib")) / "profile.py")
    assert spec is not None
    assert spec.loader is not None
    standard = module_from_spec(spec)
    sys.modules[__name__] = standard
    spec.loader.exec_module(standard)
