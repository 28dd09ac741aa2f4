"""The reference data: small checkpoints with random weights and the scores that they must give.

One archive holds it, which is smaller than its files. `fixtures/README.md` says what they are.
"""

import hashlib
import shutil
import tarfile
import tempfile
from pathlib import Path

ARCHIVE = Path(__file__).parent / "fixtures" / "reference.tar.xz"


def unpacked() -> Path:
    """The folder of the reference checkpoints, which the first caller unpacks beside the archive."""
    folder = ARCHIVE.parent / "unpacked" / hashlib.sha256(ARCHIVE.read_bytes()).hexdigest()[:12]
    if not folder.is_dir():
        folder.parent.mkdir(exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent))
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(made, filter="data")
        try:
            (made / "reference").rename(folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
        shutil.rmtree(made)
    return folder


REFERENCE = unpacked()
MISTRAL = REFERENCE / "mistral" / "model"
