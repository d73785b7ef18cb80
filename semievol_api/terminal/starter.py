"""`semievol init`: write a task and a config from the user's own file, and show what was understood.

Knows nothing of how a file is understood.
"""

from __future__ import annotations

from pathlib import Path

from semievol_api.data import Starter
from semievol_api.errors import UserError
from semievol_api.terminal.bars import out, pairs


def write_starter(starter: Starter, folder: Path) -> None:
    """Write the files side by side in `folder`; refuses to overwrite any of them.

    Raises:
        UserError: a file is there already.
    """
    there = [name for name in starter.files if (folder / name).exists()]
    if there:
        raise UserError(
            f"The folder {str(folder)!r} holds {', '.join(there)} already; nothing was written. Remove it, or "
            f"choose another place with --folder."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in starter.files.items():
        (folder / name).write_text(text, "utf-8")
    console = out()
    found = starter.understanding
    columns = {k: v for k, v in found.columns.model_dump(mode="json").items() if v}
    answers = ", ".join(f"{answer} ({count})" for answer, count in found.answer_counts)
    more = {"answers": answers} if found.kind in ("labels", "multiple_choice") else {}
    facts = {"rows": found.rows, "kind": found.kind, **columns, **more}
    pairs(console, f"What {found.source} seems to hold", facts)
    for line in (*found.reasons, *starter.remarks):
        console.print(f"- {line}", markup=False)
    console.print(f"Wrote {', '.join(starter.files)} into {folder.resolve()}.", markup=False)
    console.print(
        f"Read task.toml, and make its instruction say what you would ask a person. Then: semievol preview "
        f"{folder / 'semievol.toml'}",
        markup=False,
    )
