"""`semievol init`: write a task and a config from the user's own file, and show what was understood.

Knows nothing of how a file is understood.
"""

from __future__ import annotations

from pathlib import Path

from semievol_api.data import start
from semievol_api.errors import UserError
from semievol_api.terminal.bars import out, pairs


def write_starter(data: Path, folder: Path, unlabeled: Path | None, test: Path | None) -> None:
    """Write the files side by side in `folder`; refuses to overwrite any of them.

    Raises:
        UserError: the data cannot be understood, or a file is there already.
    """
    starter = start(data, unlabeled, test)
    there = [name for name in starter.files if (folder / name).exists()]
    if there:
        raise UserError(
            f"{', '.join(there)} exists already in {str(folder)!r}; nothing was written. Remove it, or choose another "
            f"place with --folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in starter.files.items():
        (folder / name).write_text(text, "utf-8")
    console = out()
    found = starter.understanding
    columns = {k: v for k, v in found.columns.model_dump(mode="json").items() if v}
    pairs(console, f"What {found.source} seems to hold", {"kind": found.kind, **columns})
    for line in (*found.reasons, *starter.remarks):
        console.print(f"- {line}", markup=False)
    console.print(f"Wrote {', '.join(starter.files)} into {folder.resolve()}.", markup=False)
    console.print(f"Look at them, then: semievol preview {folder / 'semievol.toml'}", markup=False)
