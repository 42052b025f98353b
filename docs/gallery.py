"""Runs gallery pages and leaves their pictures beside them: `python docs/gallery.py [PAGE]...`."""

import os
import re
import sys
import time
from pathlib import Path

os.chdir(Path(__file__).parent / "gallery")
for page in map(Path, sys.argv[1:] or sorted(Path().glob("*.md"))):
    print(f"\n{page.stem}")
    start, names = time.process_time(), {"__name__": page.stem}
    for snippet in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(compile(snippet, page.name, "exec"), names)
    print(f"{time.process_time() - start:.0f} s of processor time")
